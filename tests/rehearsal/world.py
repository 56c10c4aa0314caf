"""The world of a rehearsal: its places, and what a person does in them from outside."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal.commands import RehearsalError, inside, namespaces
from rehearsal.facility import FACILITIES, Facility
from rehearsal.network import connect
from rehearsal.software import login_environment, python_programs

PROJECT = Path(__file__).resolve().parents[2]
PLACE = Path(__file__).resolve().parent / "place.py"
KINDS = ("mount", "net", "uts", "ipc", "pid")


@dataclass
class Place:
    """A place at work.

    Attributes:
        facility: what it is.
        folder: its files, as this process sees them.
        process: its program's outermost process.
        pid: a process inside, whose namespaces are those of the place.
    """

    facility: Facility
    folder: Path
    process: subprocess.Popen[str]
    pid: int

    def ask(self, what: str, **arguments: Any) -> Any:
        """Let the place's own program do something; see ``place.serve``.

        Raises:
            RehearsalError: it could not.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RehearsalError(f"{self.facility.name}: {what}: {answer['error']}")
        return answer.get("answer")

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RehearsalError(f"the place {self.facility.name} has ended: {self.words()}")
        return dict(json.loads(line))

    def words(self) -> str:
        """Return the end of what its program has printed."""
        return (self.folder / "place.log").read_text(errors="replace")[-3000:].strip()

    def shell(self, command: str, variables: Mapping[str, str] | None = None) -> list[str]:
        """Return the command that runs a line in a login shell on the login node, as ssh would."""
        environment = {**login_environment(self.facility), **(variables or {})}
        words = [f"{name}={value}" for name, value in environment.items()]
        return [*inside(self.pid, KINDS), "env", "-i", *words, "bash", "-lc", f"cd && {command}"]

    def run(self, command: str, limit_s: float = 120) -> str:
        """Run a line in a login shell and return its output, banner included; raise RehearsalError if it fails."""
        done = subprocess.run(self.shell(command), capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode:
            raise RehearsalError(f"{self.facility.name}: {command}: exit {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def path(self, inside_path: str) -> Path:
        """Return the path, as this process sees it, of a file on the place's storage or in its home."""
        for mount, name in ((self.facility.storage, "storage"), ("/home", "home"), ("/tmp", "own/tmp")):
            if inside_path == mount or inside_path.startswith(f"{mount}/"):
                return self.folder / name / inside_path[len(mount) :].lstrip("/")
        raise RehearsalError(f"{inside_path} is on no file system of {self.facility.name}")


@contextmanager
def start_place(name: str, root: Path, agent_environment: Path | None = None) -> Iterator[Place]:
    """Yield a place at work; all its processes end with it."""
    facility, folder = FACILITIES[name], root / name
    folder.mkdir(parents=True)
    spec = {
        "facility": name,
        "folder": str(folder),
        "project": str(PROJECT),
        "packages": sysconfig.get_paths()["purelib"],
        "programs": python_programs(Path(sys.prefix)),
        "agent_environment": str(agent_environment or ""),
        "agent_programs": python_programs(agent_environment) if agent_environment else {},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    python = str(sys._base_executable)  # type: ignore[attr-defined]
    line = f"{shlex.quote(python)} {shlex.quote(str(PLACE))} {shlex.quote(str(folder / 'spec.json'))}; exit $?"
    command = [*namespaces(False, *KINDS), "bash", "-c", line]  # the shell, process 1 of the place, reaps orphans
    paths = os.pathsep.join([sysconfig.get_paths()["purelib"], str(PLACE.parents[1])])
    with (folder / "place.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
    try:
        place = Place(facility, folder, process, 0)
        place._read()
        place.pid = _first_child(process.pid)
        connect(facility, place.pid)
        place.ask("join")
        yield place
    finally:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()


def _first_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
