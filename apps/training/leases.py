"""Who is at work on a training task: one process at a time, over all hosts that share a site's storage.

A claim is a file ``claims/TASK.N.json`` whose age is the time since its holder was last alive. The highest number holds
the task. Who finds it stale makes the next number, which the file system grants to one process only; nothing is ever
renamed or removed under a living holder. Locks of the system are not used: Lustre is often mounted without them.
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
from apps.base.files import UNFINISHED, cannot_write, inside

FOLDER = "claims"
BEAT_S = 10.0
TICK_S = 1.0
STALE_S = 60.0  # a holder on another host counts as gone after so long without a beat


class Lease(TypedDict):
    """A holder: the machine it runs on, down to the space its process ids count in, and the process."""

    host: str
    space: str
    pid: int
    started: int  # clock ticks between the start of the machine and that of the process: tells a reused pid


@contextmanager
def acquire(
    root: Path,
    task_id: str,
    give_up: Callable[[], bool] | None = None,
    beat_s: float = BEAT_S,
    stale_s: float = STALE_S,
) -> Iterator[None]:
    """Hold a task for as long as the block runs.

    Args:
        root: the site's storage.
        task_id: of the task.
        give_up: tells that there is no more time to wait until a holder who may have gone is known to have gone; None:
            nobody is waited for.
        beat_s, stale_s: seconds between beats, and without one.

    Raises:
        LeaseHeld: a living process holds it.
        StorageError: the storage cannot be written, or leads outside the site's root.
    """
    folder = inside(root, FOLDER)
    path = _take(folder, task_id, stale_s) if give_up is None else _wait_and_take(folder, task_id, stale_s, give_up)
    over = threading.Event()
    threading.Thread(target=_beat, args=(path, over, beat_s), name="claim", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _release(path)


def _wait_and_take(folder: Path, task_id: str, stale_s: float, give_up: Callable[[], bool]) -> Path:
    """As soon as the holder is known to have gone; one who gives a beat meanwhile is at work."""
    end, seen = time.monotonic() + stale_s + 2 * TICK_S, None
    while True:
        try:
            return _take(folder, task_id, stale_s)
        except LeaseHeld:
            beat = _last_beat(folder, task_id)
            if (seen is not None and beat != seen) or time.monotonic() > end or give_up():
                raise
            seen = beat
        time.sleep(TICK_S)


def _last_beat(folder: Path, task_id: str) -> tuple[int, int] | None:
    """Number and time of the highest claim."""
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
    """A look back: between finding a claim stale and making the next, others may have come, and gone."""
    numbers = _numbers(folder, task_id)
    *earlier, last = numbers or [0]
    if _path(folder, task_id, last) != path:
        raise _at_work(folder, "another process")
    for number in earlier:
        _require_stale(folder, task_id, number, stale_s)
    for number in earlier:
        _path(folder, task_id, number).unlink(missing_ok=True)


def _release(path: Path) -> None:
    """Give it up, unless it was taken for stale and has another holder by now."""
    with suppress(OSError):
        if read_lease(path) == own_lease():
            path.unlink()


def _create(folder: Path, task_id: str, number: int) -> Path:
    path = _path(folder, task_id, number)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise _at_work(path, "another process") from None
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
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise _at_work(path, f"{who}, last alive {max(0.0, age_s):.0f} s ago,")


def _at_work(path: Path, who: str) -> LeaseHeld:
    return LeaseHeld(f"{who} is at work on this very task", file=str(path), remedy="Its result will do for both")


def _beat(path: Path, over: threading.Event, beat_s: float) -> None:
    while not over.wait(beat_s):
        with suppress(OSError):
            os.utime(path)


def _path(folder: Path, task_id: str, number: int) -> Path:
    return folder / f"{task_id}.{number:06d}.json"


def _numbers(folder: Path, task_id: str) -> list[int]:
    return sorted(int(path.name.split(".")[-2]) for path in folder.glob(f"{task_id}.*.json"))


def read_lease(path: Path) -> Lease | None:
    """Who holds it; None where the file has no content yet.

    Raises:
        FileNotFoundError: it is held no longer.
    """
    try:
        found: Any = json.loads(path.read_text())
        return Lease(host=found["host"], space=found["space"], pid=int(found["pid"]), started=int(found["started"]))
    except (ValueError, TypeError, KeyError):
        return None


def clock_of(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder; hosts may disagree with it, and with each other."""
    probe = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        probe.touch()
        os.utime(probe)  # as a beat does
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def own_lease() -> Lease:
    return Lease(host=os.uname().nodename, space=_space(), pid=os.getpid(), started=_started(os.getpid()) or 0)


def is_gone(holder: Lease) -> bool:
    """Whether a holder is known to have ended; of another host nothing is known but its beat."""
    if (holder["host"], holder["space"]) != (os.uname().nodename, _space()) or not holder["space"]:
        return False
    return _started(holder["pid"]) != holder["started"]


def _space() -> str:
    """Names the run of the machine and its space of process ids; empty where the system does not tell."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
