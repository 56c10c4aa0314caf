"""Apps that move artifacts between the server's store and a site's store, and delete them at a site.

Here the stores share a file system: copy or link, then read back and verify. Artifacts that Globus Transfer has moved
already are verified and checked here in the same way.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from apps.artifacts.manifests import Manifest, remove_update, require_acceptable
from apps.artifacts.store import Artifact, artifact_path, verify
from apps.artifacts.update_checks import UpdateRules, check_update
from apps.base.errors import ArtifactError, UpdateRefused, placed
from apps.base.files import atomic_file, cannot_read, cannot_write, inside
from apps.base.identity import Place
from data.files import UNFINISHED

logger = logging.getLogger(__name__)
ATTEMPTS = 3
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


def move(artifact: Artifact, source: str, destination: str, link: bool = False) -> int:
    """Copy an artifact between stores and verify the copy; it is read for its hash once if it is whole.

    Args:
        artifact: to be moved.
        source: folder of artifacts.
        destination: folder of artifacts.
        link: make a hard link instead of a copy if both stores are on one file system; otherwise copy.

    Returns:
        Bytes moved: 0 for a link, or if the artifact was there already.

    Raises:
        ArtifactError: the source is damaged, or the copy is wrong three times.
        StorageError: the destination cannot be written.
    """
    try:
        verify(destination, artifact)
        return 0
    except ArtifactError:
        pass  # not there yet, or damaged: copied below
    origin, target = artifact_path(source, artifact), artifact_path(destination, artifact)
    for attempt in range(ATTEMPTS):
        if not origin.is_file() or origin.stat().st_size != artifact["nbytes"]:
            verify_or_delete(source, artifact)
        linked = link and _link(origin, target)
        if not linked:
            _copy(origin, target, artifact["nbytes"])
        try:
            verify(destination, artifact)
            return 0 if linked else artifact["nbytes"]
        except ArtifactError as error:
            logger.warning("attempt %d of %d: %s", attempt + 1, ATTEMPTS, error)
            try:
                verify_or_delete(source, artifact)
            finally:
                target.unlink(missing_ok=True)
    raise ArtifactError(
        f"the copy was damaged {ATTEMPTS} times", file=str(target), remedy="Check the disk, then resume"
    )


def _copy(origin: Path, target: Path, nbytes: int) -> None:
    """Copy a file; one that has grown beyond its size is not copied to its end, which may never come."""
    with atomic_file(target.parent, target.name) as writer:
        for piece in _pieces(origin):
            writer.write(piece)
            if writer.tell() > nbytes:
                break


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a file; an error of reading is told as one of this file, not of its copy."""
    try:
        with open(path, "rb") as reader:
            while piece := reader.read(1 << 22):
                yield piece
    except OSError as error:
        raise cannot_read(path, error) from error


def _link(origin: Path, target: Path) -> bool:
    """Make a hard link; return False if the file systems do not support it."""
    temporary = target.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(origin, temporary)
        os.replace(temporary, target)  # replaces a damaged file
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):  # renaming one hard link onto another of the same file leaves both
            temporary.unlink()
    return True


def verify_or_delete(store: str | Path, artifact: Artifact) -> None:
    """Verify an artifact; a damaged one is deleted, so that it is made or fetched again.

    Args:
        store: folder of artifacts.
        artifact: to be verified.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        verify(store, artifact)
    except ArtifactError:
        artifact_path(store, artifact).unlink(missing_ok=True)
        raise


def sent_artifact(model: dict[str, Any]) -> Artifact:
    """Return what of a model travels: a copy in bfloat16 if there is one, else the model."""
    return model.get("sent") or model["artifact"]


def stage_out(place: Place, model: dict[str, Any], source: str, destination: str, link: bool = False) -> dict[str, Any]:
    """Move the global model to a site.

    Args:
        place: the site and the round.
        model: a task result with ``artifact``.
        source: the server's folder of artifacts.
        destination: the site's folder of what is sent to it.
        link: instead of copying; see ``move``.

    Raises:
        ArtifactError: the model is damaged.
        StorageError: the site's storage cannot be written.
    """
    started, sent = time.time(), sent_artifact(model)
    with placed(**place):
        moved = move(sent, source, destination, link)
    return {
        "artifact": sent,
        "master": model["artifact"],
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
    """Move a site's update to the server and check it before it is aggregated.

    Args:
        place: the site and the round.
        manifest: of the update; or the result of another app that has moved the update to ``destination`` already,
            with the site's manifest in it as ``manifest``.
        base: the stage-out result that the training started from; ``destination`` holds a copy of the model.
        source: the site's folder of what leaves it.
        destination: the server's folder of artifacts.
        rules: of the campaign, for updates.
        link: instead of copying; see ``move``.

    Raises:
        UpdateRefused: the update must not be aggregated.
        ArtifactError: the update is damaged at the site; training must be repeated.
    """
    started = time.time()
    site_manifest: Manifest = cast(dict[str, Any], manifest).get("manifest", manifest)
    with placed(**place):
        require_acceptable(manifest, base["artifact"])
        path = artifact_path(destination, manifest["artifact"])
        brought = bool(cast(dict[str, Any], manifest).get("nbytes_moved")) or not path.exists()
        moved = move(manifest["artifact"], source, destination, link)
        try:
            norm = check_update(manifest, base["artifact"], destination, rules)
        except UpdateRefused:
            if brought:  # not a file that another update or model is known by
                path.unlink(missing_ok=True)
            raise
    return {
        "artifact": manifest["artifact"],
        "base": base["artifact"],
        "master": base.get("master"),
        "store": destination,
        "nbytes_moved": moved,
        "update_norm": norm,
        "manifest": site_manifest,
        "wait_s": max(0.0, site_manifest["started"] - base["ended"]),
        "started": started,
        "ended": time.time(),
    }


def forget(
    place: Place, incoming: str, outgoing: str, base: dict[str, Any], earlier: dict[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Delete what was sent to a site and fetched from it for a finished training.

    Args:
        place: the site and the round.
        incoming: the site's folder of what is sent to it.
        outgoing: its folder of what leaves it.
        base: the stage-out result of the next training, whose model is kept.
        earlier: the stage-out result of the finished training.
        manifest: of its update.

    Returns:
        ``removed``: the deleted artifacts, by folder.
    """
    started, removed = time.time(), removable(incoming, outgoing, base, earlier, manifest)
    with placed(**place):
        for folder, names in removed.items():
            inside(Path(folder).parent, Path(folder).name)
            for sha256 in names:
                remove_update(folder, Artifact(sha256=sha256, nbytes=0, kind=""))
    return {"removed": removed, "started": started, "ended": time.time()}


def removable(
    incoming: str, outgoing: str, base: dict[str, Any], earlier: dict[str, Any], manifest: Any
) -> dict[str, list[str]]:
    """Return the SHA-256 of what ``forget`` deletes in each of the two folders; for the arguments see there."""
    return {incoming: no_longer_needed(base, earlier), outgoing: [manifest["artifact"]["sha256"]]}


def no_longer_needed(base: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """Return the SHA-256 of the model of an earlier training, unless the next one starts from the same."""
    return sorted({earlier["artifact"]["sha256"]} - {base["artifact"]["sha256"]})
