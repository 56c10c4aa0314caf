"""Apps that report the state of a site: its storage and versions, the progress of its tasks, the start of a block."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from apps.base.errors import placed
from apps.base.files import inside, modified_ns, newest_file
from apps.base.identity import Place
from apps.base.versions import code_version, library_versions
from apps.training.checkpoints import FOLDER as CHECKPOINTS
from apps.training.deadline import block_end
from apps.training.leases import FOLDER as LEASES
from apps.training.leases import STALE_S, clock_of
from apps.training.progress import Progress, read_progress

MARK = ".crossfed-here"  # by this file a driver finds out that a Globus collection shows what leaves a site
BLOCK_VARIABLE = "PARSL_WORKER_BLOCK_ID"


class SiteStatus(TypedDict):
    """State of a site's storage at one time."""

    progress: Progress | None
    claims: list[str]  # tasks whose lease is held by a living process
    checkpoint: str | None  # path of the newest one below the root; contains task and step
    finished: str | None  # task of the newest manifest
    time: float  # on the site's clock


class BlockStart(TypedDict):
    """Report of the first task in a block."""

    block: str  # Parsl's number of the block; empty if the worker has none
    left_s: float | None  # until the walltime ends, by the clock of the site; None without a walltime
    host: str
    started: float
    ended: float


def site_status(place: Place, root: str) -> SiteStatus:
    """Report the progress of a site's tasks from its storage; changes nothing there.

    Args:
        place: the site and the round.
        root: the site's storage.

    Raises:
        StorageError: a folder leads outside the root.
    """
    folder = Path(root)
    with placed(place["site"], place["round"]):
        manifest = newest_file(inside(folder, "manifests"), "*.json")
        checkpoint = newest_file(inside(folder, CHECKPOINTS), "*/step-*.safetensors")
        return SiteStatus(
            progress=read_progress(folder),
            claims=_held_tasks(inside(folder, LEASES)),
            checkpoint=str(checkpoint.relative_to(folder.resolve())) if checkpoint else None,
            finished=manifest.stem if manifest else None,
            time=time.time(),
        )


def examine_site(_place: Place, root: str, out: str) -> dict[str, Any]:
    """Report the versions and the storage of a site before any work is sent there.

    Args:
        _place: the site.
        root: the site's own storage; created if absent.
        out: folder of what leaves the site; created if absent, with an empty file ``MARK`` in it.

    Returns:
        ``versions`` of Python, of this project and of its libraries; ``storage``: the reason why one of the folders
        cannot be written, or None.
    """
    versions = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    problem = storage_problem(Path(root)) or storage_problem(Path(out))
    if problem is None:
        (Path(out) / MARK).touch()
    return {"versions": versions, "storage": problem}


def storage_problem(root: Path) -> str | None:
    """Return the reason why a folder cannot be written, or None; the folder is created if absent."""
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text("crossfed")
        probe.unlink()
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return None


def _held_tasks(folder: Path) -> list[str]:
    """Return the tasks whose lease was renewed within its lifetime."""
    leases = list(folder.glob("*.json"))
    if not leases:
        return []
    with suppress(OSError):
        now_ns = int(clock_of(folder) * 1e9)
        return sorted({path.name.split(".")[0] for path in leases if now_ns - modified_ns(path) < STALE_S * 1e9})
    return []


def block_started(_place: Place) -> BlockStart:
    """Report that a block has started and its remaining walltime.

    Args:
        _place: the site.
    """
    now, end = time.time(), block_end()
    left_s = None if end is None else end - now
    return BlockStart(
        block=os.environ.get(BLOCK_VARIABLE, ""), left_s=left_s, host=os.uname().nodename, started=now, ended=now
    )
