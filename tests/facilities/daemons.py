"""Daemons of a test facility: children of the test process in the foreground, so that none outlives it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from patience import patience

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PORTS_A_BLOCK = 100
LONGEST_ROOT = 48  # sockets below it have to stay under the 107 characters that the kernel takes


class FacilityError(RuntimeError):
    """A facility did not start or a command failed; the message has the end of its logs."""


def program(name: str) -> str:
    """Return the full path of a program, also of programs in sbin."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise FacilityError(f"{name} is not installed")
    return path


def start(command: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground; it is killed when this process ends, however that happens."""
    # A session of its own: Ctrl-C at the terminal is for the tests, which then stop their daemons in order.
    with log.open("ab") as output:
        return subprocess.Popen(
            [program("setpriv"), "--pdeathsig", "KILL", program(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **variables},
            start_new_session=True,
        )


def stop(processes: Iterable[subprocess.Popen[bytes]], patience_s: float = 10) -> None:
    """End daemons: terminate all at once, then kill after ``patience_s``; 0 kills at once."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate() if patience_s else process.kill()
    for process in running:
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def call(command: Sequence[str], variables: Mapping[str, str], limit_s: float = 60) -> str:
    """Run a command and return its output.

    Raises:
        FacilityError: it failed; with its error message.
    """
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=patience(limit_s),
        check=False,
    )
    if done.returncode:
        message = done.stderr.strip() or done.stdout.strip()
        raise FacilityError(f"{' '.join(command)}: exit {done.returncode}: {message}")
    return done.stdout


def wait_until(what: str, condition: Callable[[], bool], logs: Path | None = None, limit_s: float = 60) -> None:
    """Wait for a condition; one that raises FacilityError is not met yet.

    Raises:
        FacilityError: it took too long.
    """
    began = time.monotonic()
    while time.monotonic() - began < patience(limit_s):  # of each moment: others may have begun to use the machine
        with suppress(FacilityError):
            if condition():
                return
        time.sleep(0.05)
    raise FacilityError(f"no {what} after {limit_s:.0f} s\n{log_tails(logs)}")


def log_tails(logs: Path | None, lines: int = 20) -> str:
    """Return the end of each log file in a folder."""
    if logs is None:
        return ""
    tails = [(p.name, p.read_text(errors="replace").splitlines()[-lines:]) for p in sorted(logs.iterdir())]
    return "\n".join(f"--- {name}\n" + "\n".join(tail) for name, tail in tails)


def claim_ports(count: int) -> tuple[socket.socket, int]:
    """Reserve a free block of ports on this machine.

    Returns:
        A socket that reserves the block against other searches while it is open, and the first port.
    """
    bases = list(range(20_000, 32_000, PORTS_A_BLOCK))  # below the ports that the kernel assigns by itself
    random.Random(os.urandom(8)).shuffle(bases)
    for base in bases:
        claim = bound(base)
        if claim is None:
            continue
        if all(is_free(base + i) for i in range(1, count + 1)):
            return claim, base + 1
        claim.close()
    raise FacilityError(f"no {count} free ports together between {bases[0]} and {bases[-1]}")


def bound(port: int) -> socket.socket | None:
    claim = socket.socket()
    try:
        claim.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return None
    return claim


def is_free(port: int) -> bool:
    claim = bound(port)
    if claim is not None:
        claim.close()
    return claim is not None


def start_munge(root: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a munged below ``root``; return its process and its socket."""
    key, socket_path = root / "etc" / "munge.key", root / "run" / "munge.sock"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    paths = {"key-file": key, "socket": socket_path, "pid-file": root / "run" / "munged.pid"}
    paths |= {"log-file": root / "log" / "munged.log", "seed-file": root / "run" / "munged.seed"}
    options = [f"--{name}={path}" for name, path in paths.items()]
    process = start(["munged", "--foreground", "--num-threads=2", *options], root / "log" / "munged.out")
    try:
        wait_until("munged", lambda: bool(call(["munge", "-n", "-S", str(socket_path)], {})), root / "log", 10)
    except FacilityError:
        stop([process])
        raise
    return process, socket_path


def make_folders(root: Path) -> None:
    """Make the folders of a facility; munged requires that they are not writable by others."""
    if len(str(root)) > LONGEST_ROOT:
        raise FacilityError(f"{root} is too long a path for the sockets below it: {LONGEST_ROOT} characters at most")
    for name in ("", "etc", "run", "log", "state", "spool", "dev"):
        (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        (root / name).chmod(0o755)


def processes_of(root: Path) -> list[psutil.Process]:
    """Return the processes with a file of a folder in their command line, its step daemons, and their children."""
    mark, found = f"{root}/", {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in " ".join(process.cmdline()) or is_step_daemon(process, mark):
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return [process for pid, process in found.items() if pid not in own]


def is_step_daemon(process: psutil.Process, mark: str) -> bool:
    """Return True for a slurmstepd of the folder: its path is not in its command line, only in its environment."""
    if not process.name().startswith("slurmstepd"):
        return False
    with suppress(OSError):
        return mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    return False


def has_open(process: psutil.Process, path: Path) -> bool:
    with suppress(psutil.Error):
        return any(file.path == str(path) for file in process.open_files())
    return False


def kill_processes(processes: Iterable[psutil.Process]) -> bool:
    """Kill processes and wait for their end; return True if there were any."""
    victims = list(processes)
    for process in victims:
        with suppress(psutil.Error):
            process.kill()
    wait_until("killed processes to be gone", lambda: not any(is_alive(process) for process in victims))
    return bool(victims)


def is_alive(process: psutil.Process) -> bool:
    """Return True if a process runs; a zombie does not."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
