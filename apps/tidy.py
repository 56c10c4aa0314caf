"""Makes room at a site: artifacts that no coming task needs are deleted."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.errors import placed
from apps.files import inside
from apps.manifests import Place

logger = logging.getLogger(__name__)
ARTIFACT = re.compile(r"([0-9a-f]{64})\.(safetensors|damaged)")
SPARE_S = 600.0


def tidy(place: Place, root: str, keep: Sequence[str], spare_s: float = SPARE_S) -> dict[str, Any]:
    """Delete the artifacts in a site's storage but for those to keep.

    Args:
        place: the site and the round.
        root: the site's storage.
        keep: SHA-256 of artifacts that stay: those of tasks to come, and of manifests whose answers are still wanted.
        spare_s: what was written within so many seconds stays too: a task may have made it that the driver has not
            heard of yet.

    Returns:
        ``removed`` (SHA-256, sorted) and ``nbytes`` that are free now. Artifacts with other names than their links
        lose the name only.
    """
    removed, nbytes = [], 0
    started = time.time()
    with placed(**place):
        for path, sha in _artifacts(inside(root, "artifacts")):
            if sha in keep:
                continue
            with suppress(OSError):  # gone meanwhile, or a folder of another user
                known = path.stat()
                if started - known.st_mtime < spare_s:
                    continue
                path.unlink()
                removed.append(sha)
                nbytes += known.st_size if known.st_nlink == 1 else 0
    return {"removed": sorted(removed), "nbytes": nbytes, "started": started, "ended": time.time()}


def _artifacts(store: Path) -> Iterator[tuple[Path, str]]:
    """Files of a store that are named as artifacts are; nothing else in it is ours to delete."""
    for path in sorted(store.glob("*")):
        match = ARTIFACT.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            yield path, match[1]
