"""Hold a run directory for one driver, on file systems with and without file locks.

The kernel releases a file lock when its process ends, so it is the first choice. Some file systems have none (Lustre
mounted without ``flock``, NFS without its lock service), and with Lustre's ``localflock`` each host sees its own locks
only. So a driver also keeps a lease as training tasks do: a file with host and process that is touched again and again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from apps.base.errors import LeaseHeld, UserMistake
from apps.training.leases import FOLDER, STALE_S, Lease, acquire, is_gone, own_lease, read_lease

logger = logging.getLogger(__name__)
LOCK, TASK = "driver.lock", "driver"


class DriverLock:
    """The lock on a run directory; the lease is taken by ``begin``, as nothing may be written before.

    Args:
        folder: the run directory.

    Raises:
        UserMistake: another driver on this host holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.lease = folder, ExitStack()
        self.stream = open(folder / LOCK, "a+")  # noqa: SIM115 - held as long as the driver lives
        try:
            if not try_lock(self.stream):
                raise in_use(folder)
        except BaseException:
            self.stream.close()
            raise

    def begin(self) -> None:
        """Take the lease, and write this process into the lock file.

        Raises:
            UserMistake: a driver on another host holds the run.
        """
        try:
            self.lease.enter_context(acquire(self.folder, TASK, give_up=lambda: _lives_here(newest_lease(self.folder))))
        except LeaseHeld:
            raise in_use(self.folder) from None
        self.stream.seek(0)
        self.stream.truncate()
        self.stream.write(f"{os.getpid()} on {platform.node()}\n")
        self.stream.flush()

    def close(self) -> None:
        """Release both."""
        self.lease.close()
        self.stream.close()


def try_lock(stream: IO[str]) -> bool:
    """Lock a file if its file system has locks.

    Returns:
        False only if another process holds the lock.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        logger.warning("%s: no file lock (%s: %s); its lease alone is kept", stream.name, code, error.strerror)
    return True


def holder(folder: Path) -> str | None:
    """Return the driver that holds a run directory, as text; None if none does, as far as this host knows.

    Args:
        folder: a run directory; nothing in it is changed.
    """
    try:
        with open(folder / LOCK) as stream:
            if not try_lock(stream):
                return stream.read().strip() or _lease_text(newest_lease(folder)) or "unknown"
    except OSError:  # no such file, or not readable: the lease may be
        pass
    lease = newest_lease(folder)
    return _lease_text(lease) if lease and (_lives_here(lease) or (_is_fresh(folder) and not is_gone(lease))) else None


def in_use(folder: Path) -> UserMistake:
    """Return the error for a run that another driver holds."""
    lease = newest_lease(folder)
    process = (folder / LOCK).read_text().strip() or _lease_text(lease) or "unknown"
    return UserMistake(f"{folder} is in use by another driver (process {process})", remedy="Wait for it or stop it")


def newest_lease(folder: Path) -> Lease | None:
    """Return the holder in a run directory's newest lease, or None."""
    paths = sorted((folder / FOLDER).glob(f"{TASK}.*.json"))
    try:
        return read_lease(paths[-1]) if paths else None
    except FileNotFoundError:
        return None


def _is_fresh(folder: Path) -> bool:
    """Return True if the newest lease was touched within its lifetime, by the clock of this host."""
    times = [path.stat().st_mtime for path in (folder / FOLDER).glob(f"{TASK}.*.json")]
    return bool(times) and time.time() - max(times) < STALE_S


def _lives_here(lease: Lease | None) -> bool:
    """Return True if a holder is a living process of this host."""
    own = own_lease()
    return lease is not None and (lease["host"], lease["space"]) == (own["host"], own["space"]) and not is_gone(lease)


def _lease_text(lease: Lease | None) -> str:
    return f"{lease['pid']} on {lease['host']}" if lease else ""
