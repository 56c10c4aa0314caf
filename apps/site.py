"""What can be seen of a site's work from beside it: for a driver whose tasks give no other sign of life."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from apps.base.errors import placed
from apps.base.files import inside
from apps.base.identity import Place
from apps.training.checkpoints import FOLDER as CHECKPOINTS
from apps.training.deadline import block_end
from apps.training.leases import FOLDER as CLAIMS
from apps.training.leases import STALE_S, clock_of
from apps.training.progress import Progress, read_progress

MARK = ".crossfed-here"  # by which a driver tells that a collection shows this folder


class SiteStatus(TypedDict):
    """A moment of a site's storage.

    ``claims`` are the tasks that somebody alive is at, ``checkpoint`` is the last one saved and tells its task and
    step, ``finished`` is the task of the newest manifest, ``time`` the moment on the site's clock.
    """

    progress: Progress | None
    claims: list[str]
    checkpoint: str | None
    finished: str | None
    time: float


def site_status(place: Place, root: str) -> SiteStatus:
    """See how far a site is; reads only, but for the time of the file system.

    Raises:
        StorageError: the root leads outside.
    """
    folder = Path(root)
    with placed(place["site"], place["round"]):
        manifest = _newest(inside(folder, "manifests"), "*.json")
        checkpoint = _newest(inside(folder, CHECKPOINTS), "*/step-*.safetensors")
        return SiteStatus(
            progress=read_progress(folder),
            claims=_alive(inside(folder, CLAIMS)),
            checkpoint=str(checkpoint.relative_to(folder.resolve())) if checkpoint else None,
            finished=manifest.stem if manifest else None,
            time=time.time(),
        )


def examine_site(place: Place, root: str) -> dict[str, Any]:
    """What a site is like before any work is sent there.

    Returns:
        ``versions`` of Python, of this project and of its libraries; ``storage``: why the root cannot be written, or
        None. The root is made if it is not there, with an empty file ``MARK`` in it.
    """
    from apps.base.versions import code_version, library_versions

    versions = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    problem = storage_problem(Path(root))
    if problem is None:
        (Path(root) / MARK).touch()
    return {"versions": versions, "storage": problem}


def storage_problem(root: Path) -> str | None:
    """Why a folder cannot be written, or None. It is made if it is not there."""
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text("crossfed")
        probe.unlink()
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return None


def _newest(folder: Path, pattern: str) -> Path | None:
    found = [(_saved_ns(path), path) for path in folder.glob(pattern)]
    return max(found, default=(0, None))[1]


def _alive(folder: Path) -> list[str]:
    """Tasks whose holder has given a beat within the time that a claim lives."""
    claims = list(folder.glob("*.json"))
    if not claims:
        return []
    with suppress(OSError):
        now_ns = int(clock_of(folder) * 1e9)
        return sorted({path.name.split(".")[0] for path in claims if now_ns - _saved_ns(path) < STALE_S * 1e9})
    return []


def _saved_ns(path: Path) -> int:
    """When a file was written; 0 if it has just gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


BLOCK_VARIABLE = "PARSL_WORKER_BLOCK_ID"


class BlockStart(TypedDict):
    """What a worker tells that has come to a task."""

    block: str  # Parsl's number of the block; empty where a worker has none
    left_s: float | None  # until its walltime is over, by the clock of the site; None where it has none
    host: str
    started: float
    ended: float


def block_started(place: Place) -> BlockStart:
    """Answer as soon as a worker of the site is there to do it."""
    now, end = time.time(), block_end()
    left_s = None if end is None else end - now
    return BlockStart(
        block=os.environ.get(BLOCK_VARIABLE, ""), left_s=left_s, host=os.uname().nodename, started=now, ended=now
    )
