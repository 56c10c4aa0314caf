"""Leases on training tasks: one process at a time works on a task, over all hosts that share a site's storage.

A lease is a file ``claims/TASK.N.json`` that its holder touches again and again; its age is the time since the holder
was last alive. The highest number holds the task. A process that finds it stale creates the next number, which the file
system grants to one process only; the file of a living holder is never renamed or removed. File locks are not used:
Lustre is often mounted without them.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from apps.base.errors import LeaseHeld
from apps.base.files import cannot_write, inside
from data.files import UNFINISHED

FOLDER = "claims"
HEARTBEAT_S = 10.0
TICK_S = 1.0
STALE_S = 60.0  # a holder on another host counts as gone after so long without a heartbeat


class Lease(TypedDict):
    """Holder of a task: its machine and process."""

    host: str
    space: str  # names the boot of the machine and its namespace of process ids
    pid: int
    started: int  # clock ticks from the start of the machine to that of the process: detects a reused pid


@contextmanager
def acquire(
    root: Path,
    task_id: str,
    give_up: Callable[[], bool] | None = None,
    heartbeat_s: float = HEARTBEAT_S,
    stale_s: float = STALE_S,
) -> Iterator[None]:
    """Hold the lease on a task while the block runs.

    Args:
        root: the site's storage.
        task_id: of the task.
        give_up: called while waiting for a holder that may be gone; True ends the waiting. None: do not wait.
        heartbeat_s: seconds between heartbeats.
        stale_s: seconds without a heartbeat after which a holder counts as gone.

    Raises:
        LeaseHeld: a living process holds it.
        StorageError: the storage cannot be written, or leads outside the site's root.
    """
    folder = inside(root, FOLDER)
    path = _take(folder, task_id, stale_s) if give_up is None else _wait_and_take(folder, task_id, stale_s, give_up)
    over = threading.Event()
    threading.Thread(target=_keep_alive, args=(path, over, heartbeat_s), name="lease", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _release(path)


def _wait_and_take(folder: Path, task_id: str, stale_s: float, give_up: Callable[[], bool]) -> Path:
    """Take the lease as soon as its holder is known to be gone; a heartbeat meanwhile shows that it is not."""
    end, seen = time.monotonic() + stale_s + 2 * TICK_S, None
    while True:
        try:
            return _take(folder, task_id, stale_s)
        except LeaseHeld:
            heartbeat = _last_heartbeat(folder, task_id)
            if (seen is not None and heartbeat != seen) or time.monotonic() > end or give_up():
                raise
            seen = heartbeat
        time.sleep(TICK_S)


def _last_heartbeat(folder: Path, task_id: str) -> tuple[int, int] | None:
    """Return number and time of the highest lease."""
    with suppress(OSError, IndexError):
        number = _numbers(folder, task_id)[-1]
        return number, _path(folder, task_id, number).stat().st_mtime_ns
    return None


def _take(folder: Path, task_id: str, stale_s: float) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _numbers(folder, task_id)
        for number in held[-1:]:
            _require_stale(folder, task_id, number, stale_s)
        path = _create(folder, task_id, held[-1] + 1 if held else 1)
        try:
            _require_first(folder, task_id, path, stale_s)
        except LeaseHeld:
            path.unlink(missing_ok=True)
            raise
        return path
    except OSError as error:
        raise cannot_write(folder, error) from error


def _require_first(folder: Path, task_id: str, path: Path, stale_s: float) -> None:
    """Check again after creating a lease: other processes may have taken and released the task meanwhile."""
    numbers = _numbers(folder, task_id)
    *earlier, last = numbers or [0]
    if _path(folder, task_id, last) != path:
        raise _lease_held(folder, "another process")
    for number in earlier:
        _require_stale(folder, task_id, number, stale_s)
    for number in earlier:
        _path(folder, task_id, number).unlink(missing_ok=True)


def _release(path: Path) -> None:
    """Remove the lease, unless it was considered stale and has another holder by now."""
    with suppress(OSError):
        if read_lease(path) == own_lease():
            path.unlink()


def _create(folder: Path, task_id: str, number: int) -> Path:
    path = _path(folder, task_id, number)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise _lease_held(path, "another process") from None
    with open(handle, "w") as stream:
        json.dump(own_lease(), stream)
    return path


def _require_stale(folder: Path, task_id: str, number: int, stale_s: float) -> None:
    path = _path(folder, task_id, number)
    try:
        age_s = clock_of(folder) - path.stat().st_mtime
        holder = read_lease(path)
    except FileNotFoundError:
        return  # its holder has just finished
    if age_s < stale_s and not (holder and is_gone(holder)):
        name = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise _lease_held(path, f"{name}, last alive {max(0.0, age_s):.0f} s ago,")


def _lease_held(path: Path, holder: str) -> LeaseHeld:
    return LeaseHeld(f"{holder} is working on the same task", file=str(path), remedy="Its result will be used for both")


def _keep_alive(path: Path, over: threading.Event, heartbeat_s: float) -> None:
    while not over.wait(heartbeat_s):
        with suppress(OSError):
            os.utime(path)


def _path(folder: Path, task_id: str, number: int) -> Path:
    return folder / f"{task_id}.{number:06d}.json"


def _numbers(folder: Path, task_id: str) -> list[int]:
    return sorted(int(path.name.split(".")[-2]) for path in folder.glob(f"{task_id}.*.json"))


def read_lease(path: Path) -> Lease | None:
    """Return the holder in a lease's file, or None if the file has no content yet.

    Raises:
        FileNotFoundError: the lease was released.
    """
    try:
        found: Any = json.loads(path.read_text())
        return Lease(host=found["host"], space=found["space"], pid=int(found["pid"]), started=int(found["started"]))
    except (ValueError, TypeError, KeyError):
        return None


def clock_of(folder: Path) -> float:
    """Return the time of the clock that stamps the files of a folder; the clocks of hosts may differ from it."""
    probe = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        probe.touch()
        os.utime(probe)  # as a heartbeat does
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def own_lease() -> Lease:
    """Return this process as a holder."""
    return Lease(host=os.uname().nodename, space=_space(), pid=os.getpid(), started=_started(os.getpid()) or 0)


def is_gone(holder: Lease) -> bool:
    """Return True if a holder is known to have ended; for another host only its heartbeat is known."""
    if (holder["host"], holder["space"]) != (os.uname().nodename, _space()) or not holder["space"]:
        return False
    return _started(holder["pid"]) != holder["started"]


def _space() -> str:
    """Return a name of the machine's boot and its namespace of process ids; empty if the system has none."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks, or None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
