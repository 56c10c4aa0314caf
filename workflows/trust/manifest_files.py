"""The signatures of the manifests in a run directory: ``manifests/SITE/TASK.json``, the same on every route."""

from __future__ import annotations

import json
from pathlib import Path

from apps.trust.signed import Signed

FOLDER = "manifests"


def manifest_file(run_dir: Path, site: str, task_id: str) -> Path:
    """Return the path of the signature of a manifest; site and task are names that were checked."""
    return run_dir / FOLDER / site / f"{task_id}.json"


def manifest_text(signed: Signed) -> str:
    """Return the content of such a file; equal signatures give equal bytes."""
    return json.dumps(signed, indent=1, sort_keys=True) + "\n"
