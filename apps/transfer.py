"""Moving artifacts between the server's store and a site's store.

This is the route by a shared or local filesystem: copy, then read back and compare.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from typing import Any

from apps.artifacts import Artifact, artifact_path, verify
from apps.errors import ArtifactError, placed
from apps.files import atomic_file
from apps.manifests import Manifest, Place
from apps.validate import UpdateRules, check_update

logger = logging.getLogger(__name__)
ATTEMPTS = 3


def move(artifact: Artifact, source: str, destination: str) -> int:
    """Copy an artifact between stores and verify what arrived; bytes moved, 0 if it was there already.

    Raises:
        ArtifactError: the source is not whole, or what arrives is wrong three times.
    """
    try:
        verify(destination, artifact)
        return 0
    except ArtifactError:
        pass  # not there yet, or not whole: fetched below
    verify_or_set_aside(source, artifact)
    for attempt in range(ATTEMPTS):
        target = artifact_path(destination, artifact)
        with open(artifact_path(source, artifact), "rb") as reader, atomic_file(target.parent, target.name) as writer:
            shutil.copyfileobj(reader, writer, 1 << 22)
        try:
            verify(destination, artifact)
            return artifact["nbytes"]
        except ArtifactError as error:
            logger.warning("attempt %d of %d: %s", attempt + 1, ATTEMPTS, error)
    raise ArtifactError(f"arrived wrong {ATTEMPTS} times", file=str(target), remedy="Check the disk, then resume")


def verify_or_set_aside(store: str, artifact: Artifact) -> None:
    """Verify an artifact where it was made. One that is damaged there is set aside, so that it is made again.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        verify(store, artifact)
    except ArtifactError:
        path = artifact_path(store, artifact)
        if path.is_file():
            os.replace(path, path.with_suffix(".damaged"))
        raise


def stage_out(place: Place, model: dict[str, Any], source: str, destination: str) -> dict[str, Any]:
    """Bring the global model to a site.

    Args:
        place: the site and the round.
        model: a task result that carries ``artifact``.
        source, destination: the server's and the site's folder of artifacts.
    """
    started = time.time()
    with placed(**place):
        moved = move(model["artifact"], source, destination)
    return {
        "artifact": model["artifact"], "frozen": model.get("frozen", ""), "store": destination,
        "nbytes_moved": moved, "started": started, "ended": time.time(),
    }  # fmt: skip


def stage_in(
    place: Place, manifest: Manifest, base: dict[str, Any], source: str, destination: str, rules: UpdateRules
) -> dict[str, Any]:
    """Bring a site's update to the server and check it before it counts.

    Args:
        place: the site and the round.
        manifest: what the site said of the update.
        base: the stage-out result that the training started from; a copy of the model lies in ``destination``.
        rules: what the campaign demands of an update.

    Raises:
        UpdateRefused: the update must not count.
        ArtifactError: the update is not whole at the site; to train again mends that.
    """
    started = time.time()
    with placed(**place):
        moved = move(manifest["artifact"], source, destination)
        norm = check_update(manifest, base["artifact"], destination, rules)
    return {
        "artifact": manifest["artifact"], "base": base["artifact"], "store": destination,
        "nbytes_moved": moved, "update_norm": norm,
        "manifest": manifest, "wait_s": max(0.0, manifest["started"] - base["ended"]),
        "started": started, "ended": time.time(),
    }  # fmt: skip
