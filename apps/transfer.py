"""Moving artifacts between the server's store and a site's store.

This is the way over a file system that both see: copy or link, then read back and compare. What Globus Transfer has
carried already is verified and checked here like any other.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from apps.artifacts.manifests import Manifest
from apps.artifacts.store import Artifact, artifact_path, verify
from apps.artifacts.update_checks import UpdateRules, check_update
from apps.base.errors import ArtifactError, placed
from apps.base.files import UNFINISHED, atomic_file, cannot_write, inside
from apps.base.identity import Place

logger = logging.getLogger(__name__)
ATTEMPTS = 3
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


def move(artifact: Artifact, source: str, destination: str, link: bool = False) -> int:
    """Copy an artifact between stores and verify what arrived; bytes moved, 0 if it was there already.

    Args:
        artifact: what to move.
        source, destination: folders of artifacts.
        link: give the file a second name instead of a copy where one file system holds both stores; this moves no
            bytes. Elsewhere it is copied all the same.

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
        origin, target = artifact_path(source, artifact), artifact_path(destination, artifact)
        linked = link and _link(origin, target)
        if not linked:
            _copy(origin, target)
        try:
            verify(destination, artifact)
            return 0 if linked else artifact["nbytes"]
        except ArtifactError as error:
            logger.warning("attempt %d of %d: %s", attempt + 1, ATTEMPTS, error)
    raise ArtifactError(f"arrived wrong {ATTEMPTS} times", file=str(target), remedy="Check the disk, then resume")


def _copy(origin: Path, target: Path) -> None:
    with open(origin, "rb") as reader, atomic_file(target.parent, target.name) as writer:
        shutil.copyfileobj(reader, writer, 1 << 22)


def _link(origin: Path, target: Path) -> bool:
    """A second name for a file; False where the file systems cannot do that."""
    temporary = target.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(origin, temporary)
        os.replace(temporary, target)  # a damaged one may lie there
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):  # two names of one file: the replacement has left this one
            temporary.unlink()
    return True


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


def stage_out(place: Place, model: dict[str, Any], source: str, destination: str, link: bool = False) -> dict[str, Any]:
    """Bring the global model to a site.

    Args:
        place: the site and the round.
        model: a task result that carries ``artifact``.
        source, destination: the server's and the site's folder of artifacts.
        link: instead of copying; see ``move``.
    """
    started = time.time()
    with placed(**place):
        moved = move(model["artifact"], source, destination, link)
    return {
        "artifact": model["artifact"],
        "frozen": model.get("frozen", ""),
        "store": destination,
        "nbytes_moved": moved,
        "started": started,
        "ended": time.time(),
    }


def stage_in(
    place: Place,
    manifest: Manifest,
    base: dict[str, Any],
    source: str,
    destination: str,
    rules: UpdateRules,
    link: bool = False,
) -> dict[str, Any]:
    """Bring a site's update to the server and check it before it counts.

    Args:
        place: the site and the round.
        manifest: what the site said of the update; ``manifest`` in it is what the site said, where another app has
            brought the update to ``destination`` already and has told of that way in its result.
        base: the stage-out result that the training started from; a copy of the model lies in ``destination``.
        rules: what the campaign demands of an update.
        link: instead of copying; see ``move``.

    Raises:
        UpdateRefused: the update must not count.
        ArtifactError: the update is not whole at the site; to train again mends that.
    """
    started = time.time()
    said: Manifest = cast(dict[str, Any], manifest).get("manifest", manifest)
    with placed(**place):
        moved = move(manifest["artifact"], source, destination, link)
        norm = check_update(manifest, base["artifact"], destination, rules)
    return {
        "artifact": manifest["artifact"],
        "base": base["artifact"],
        "store": destination,
        "nbytes_moved": moved,
        "update_norm": norm,
        "manifest": said,
        "wait_s": max(0.0, said["started"] - base["ended"]),
        "started": started,
        "ended": time.time(),
    }


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
