"""End a block whose child endpoint was killed; nobody else would end its batch job before the walltime.

Known from the code of globus-compute-endpoint 4.19 and Parsl 2026: a child endpoint touches its ``daemon.pid`` every
15 s and removes it when it ends, and it makes new certificates at each start. If it is killed, its interchange lives on
and the block goes on waiting for tasks. A task in the block may end: its result is found in the site's files.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

POOL, CERTIFICATES = "process_worker_pool", "--cert_dir"
PID_FILE = "daemon.pid"
STALE_S = 300.0
CHECK_S = 60.0
IDLE_S = 120.0  # without a task for so long: the interchange may have had others for this block
GRACE_S = 10.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """The worker pool that this process belongs to.

    Attributes:
        pool: its process id.
        certificates: folder of the child endpoint's certificates; that of the child is two levels higher.
        name: of the batch job, and of its script in the child's folder; empty: not known.
    """

    pool: int
    certificates: Path
    name: str = ""

    @property
    def child(self) -> Path:
        """Folder of the child endpoint."""
        return self.certificates.parent.parent


class Activity:
    """Time since the last task of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._at_work, self._since = False, clock()

    def set(self, at_work: bool) -> None:
        """Take note that a task begins or ends."""
        with self._lock:
            self._at_work, self._since = at_work, self._clock()

    def idle_s(self) -> float:
        """Return the seconds without a task; 0 while there is one."""
        with self._lock:
            return 0.0 if self._at_work else self._clock() - self._since


def end_block_when_orphaned(activity: Activity) -> None:
    """Start a thread that ends the block of this process when its child endpoint has gone.

    Args:
        activity: of this process; a block at work is not ended.
    """
    block = own_block()
    if block is not None:
        threading.Thread(target=_watch, args=(block, activity), name="orphaned-block", daemon=True).start()


def own_block() -> Block | None:
    """Return the block of this process; None: it is not below a worker pool of an endpoint."""
    import psutil

    pool: psutil.Process | None = None
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            pool = process if any(POOL in word for word in process.cmdline()) else pool  # the topmost counts
        if pool is not None:
            return block_of(pool.pid, pool.cmdline(), os.environ.get("JOBNAME", ""))
    return None


def block_of(pid: int, command: list[str], name: str) -> Block | None:
    """Read from a worker pool's command line which block it is of; None if that names no certificates."""
    for word, value in pairwise(command):
        if word == CERTIFICATES and Path(value).is_absolute():
            return Block(pid, Path(value), name)
    return None


def is_orphaned(block: Block, now: float) -> bool:
    """Return True if the child endpoint of a block has ended, or another one has taken its folder.

    Args:
        block: of this process.
        now: UNIX time.
    """
    if not block.child.is_dir():
        return False  # the file system is away, or not seen from here
    try:
        alive = now - (block.child / PID_FILE).stat().st_mtime < STALE_S
    except FileNotFoundError:
        alive = False
    except OSError:
        return False
    return not alive or _has_successor(block)


def _has_successor(block: Block) -> bool:
    """Return True if the certificates are younger than the script of the block: another child has made them."""
    if not block.name:
        return False
    scripts = [_modified(path) for path in (block.child / "submit_scripts").glob(f"{block.name}*")]
    made = [_modified(path) for path in block.certificates.glob("server.key")]
    return bool(scripts and made) and min(made) > min(scripts)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("nan")  # compares as neither younger nor older


def _watch(block: Block, activity: Activity) -> None:
    before = False
    while True:
        time.sleep(CHECK_S)
        orphaned = is_orphaned(block, time.time())
        if orphaned and before and activity.idle_s() > IDLE_S:  # twice: once may be the file system's
            logger.warning("the endpoint that has asked for this block (%s) was killed: ending it", block.child.name)
            end_pool(block.pool)
        before = orphaned


def end_pool(pid: int) -> None:
    """End a worker pool and all that it has started, so that the batch job ends; this process goes last.

    It would be ended with the worker that has started it, so that its own ancestors come after all others.
    """
    import psutil

    with suppress(psutil.NoSuchProcess):
        pool = psutil.Process(pid)
        below = pool.children(recursive=True)
        ancestors = [process for process in psutil.Process().parents() if process == pool or process in below]
        _end([process for process in below if process not in ancestors and process.pid != os.getpid()])
        for process in reversed(ancestors):
            with suppress(psutil.Error):
                process.kill()
    os._exit(0)


def _end(processes: list[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=GRACE_S)[1]:
        with suppress(psutil.Error):
            process.kill()
