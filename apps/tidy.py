"""Makes room at a site: the artifacts of a training that the server has are deleted there."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from apps.artifacts.manifests import Manifest, Place
from apps.artifacts.store import artifact_path
from apps.base.errors import placed
from apps.base.files import inside


def forget(
    place: Place, root: str, base: dict[str, Any], earlier: dict[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Delete what a finished training began with and what it came to.

    Args:
        place: the site and the round.
        root: the site's storage.
        base: the stage-out result of the next training, whose model stays.
        earlier: that of the finished training.
        manifest: of its update.

    Returns:
        ``removed``, the SHA-256 of what is not there any more.
    """
    started, removed = time.time(), forgotten(base, earlier, manifest)
    with placed(**place):
        store = inside(root, "artifacts")
        for sha256 in removed:
            with suppress(OSError):  # gone already, or of another user; nothing of the campaign depends on it
                artifact_path(store, {"sha256": sha256, "nbytes": 0, "kind": ""}).unlink()
    return {"removed": removed, "started": started, "ended": time.time()}


def forgotten(base: dict[str, Any], *finished: Any) -> list[str]:
    """SHA-256 of the artifacts of these results, but for that of ``base``; sorted."""
    return sorted({result["artifact"]["sha256"] for result in finished} - {base["artifact"]["sha256"]})
