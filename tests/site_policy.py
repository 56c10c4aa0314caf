"""Policies of sites for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apps.trust.policy_file import READERS

OPEN = dict.fromkeys(READERS, "any")  # lifts every rule that can be lifted


def write_policy(folder: Path, root: Path, /, **rules: Any) -> Path:
    """Write the policy of a site, which allows everything below its root but for these rules.

    Args:
        folder: of the policy file.
        root: private root of the site.
        rules: keys of the policy.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / "crossfed-site.yaml"
    values = {"policy": 1, **OPEN, "root": str(root), "exchange": "none", **rules}
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
    path.chmod(0o600)
    return path
