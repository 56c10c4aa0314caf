"""Real Globus Compute endpoint agents with their children, interchanges and workers, and their clean end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from facilities.daemons import SEARCH_PATH, FacilityError, is_alive, program, stop, wait_until
from facilities.globus.reaper import VARIABLE, end_marked, marked, start_reaper
from facilities.globus.templates import CORE

PROJECT = Path(__file__).resolve().parents[3]
NOBODY = 65_534
AGENT = "globus-compute-endpoint"


def endpoint_environment() -> Path:
    """Return the agent's own virtual environment: its packages conflict with the project's."""
    return Path(os.environ.get("CROSSFED_ENDPOINT_ENV") or PROJECT / ".endpoint-venv")


def missing_agent_programs() -> list[str]:
    """Return the programs that must be installed before an agent can run."""
    agent = endpoint_environment() / "bin" / AGENT
    missing = [] if os.access(agent, os.X_OK) else [str(agent)]
    wanted = ("unshare",) if os.getuid() == 0 else ()
    return missing + [name for name in wanted if shutil.which(name, path=SEARCH_PATH) is None]


class Agent:
    """An agent of one endpoint; it can be stopped, killed and started again.

    Attributes:
        name: name of the endpoint.
        root: folder of all its files; ``root / name`` is the endpoint's own.
        template: text of its ``user_config_template.yaml.j2``.
        started_at: time of its last start, in seconds since the epoch.
    """

    def __init__(self, root: Path, name: str, template: str, variables: Mapping[str, str], core: str = "") -> None:
        self.root, self.name, self.template = root, name, template
        self._token = uuid.uuid4().hex
        # agents set process titles, which would overwrite the environment that other processes read
        self._variables = {**variables, VARIABLE: self._token, "SPT_NOENV": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        folder = root / name
        for path in (folder, root / "home", root / "log"):
            path.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "config.yaml").write_text(CORE.format(name=name) + core)
        (folder / "user_config_template.yaml.j2").write_text(template)
        self._reaper = start_reaper(self._token)

    @property
    def pid(self) -> int:
        """Return the process id of the agent itself."""
        return self._running().pid

    @property
    def endpoint_id(self) -> str:
        """Return the id of its endpoint; raise FacilityError before its first registration."""
        with suppress(FileNotFoundError, ValueError):
            return json.loads((self.root / self.name / "endpoint.json").read_text())["endpoint_id"]
        raise FacilityError(f"{self.name} is not registered: see {self.root / 'log'}")

    def start(self) -> None:
        """Start it without waiting; remove the process id of a killed agent, as its documentation advises."""
        (self.root / self.name / "daemon.pid").unlink(missing_ok=True)
        command = [str(endpoint_environment() / "bin" / AGENT), "start", self.name]
        self.started_at = time.time()
        with (self.root / "log" / "agent.out").open("ab") as output:
            self._process = subprocess.Popen(
                [*as_nobody(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
                cwd=self.root,
                start_new_session=True,  # at its end it signals its whole process group
            )

    def check(self) -> None:
        """Raise FacilityError with the end of its log if it has ended."""
        if self._process is None or self._process.poll() is not None:
            words = (self.root / "log" / "agent.out").read_text(errors="replace")[-2000:]
            raise FacilityError(f"agent {self.name} has ended: {words}")

    def stop(self, patience_s: float = 25) -> None:
        """End it in order, then end the processes that it has left."""
        if self._process is not None:
            stop([self._process], patience_s)
        end_marked(self._token)

    def kill(self) -> None:
        """Kill only the agent; its children continue."""
        process = self._running()
        process.kill()
        process.wait()

    def close(self) -> None:
        """End it and all its processes."""
        self.stop(patience_s=5)
        self._reaper.communicate()

    def children(self) -> dict[str, int]:
        """Return the live child endpoints: endpoint id -> process id."""
        found, pids = {}, {process.pid for process in self.processes()}
        for folder in self.root.glob("uep.*"):
            with suppress(FileNotFoundError, ValueError):
                pid = int((folder / "daemon.pid").read_text().split()[0])
                endpoint_id = json.loads((folder / "endpoint.json").read_text())["endpoint_id"]
                found |= {endpoint_id: pid} if pid in pids else {}
        return found

    def kill_child(self, endpoint_id: str) -> None:
        """Kill only a child endpoint; its interchange and workers continue."""
        signal_and_wait(self.children()[endpoint_id])

    def workers(self) -> list[psutil.Process]:
        """Return the processes that run tasks, below their pools."""
        return [process for pool in self.pools() for process in workers_of(pool)]

    def pools(self) -> list[psutil.Process]:
        """Return the worker pools, one for each node of each block."""
        pools = [process for process in self.processes() if "process_worker_pool" in command_line(process)]
        return [pool for pool in pools if "process_worker_pool" not in command_line(pool.parent())]

    def kill_worker(self) -> int:
        """Kill one worker; return its process id."""
        worker = self.workers()[0]
        signal_and_wait(worker.pid)
        return worker.pid

    def processes(self) -> list[psutil.Process]:
        """Return all its live processes, including orphans."""
        return marked(self._token)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise FacilityError(f"agent {self.name} is not running")
        return self._process

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GLOBUS", "PYTHON"))}
        path = os.pathsep.join([str(endpoint_environment() / "bin"), SEARCH_PATH])
        own = {"HOME": str(self.root / "home"), "CWD": str(self.root / "home"), "PATH": path}
        return inherited | self._variables | own | {"GLOBUS_COMPUTE_USER_DIR": str(self.root)}


def as_nobody() -> list[str]:
    """Return a prefix that turns root into nobody: an agent of root needs identity mappings and runs no tasks."""
    if os.getuid() != 0:
        return []
    return [program("unshare"), "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--"]


def command_line(process: psutil.Process | None) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()) if process else ""
    return ""


def workers_of(pool: psutil.Process) -> list[psutil.Process]:
    """Return the worker processes of a pool; the first process that it starts is its manager."""
    spawned = [process for process in pool.children() if "spawn_main" in command_line(process)]
    return sorted(spawned, key=psutil.Process.create_time)[1:]


def signal_and_wait(pid: int) -> None:
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    wait_until(f"the end of {pid}", lambda: not is_alive(process), limit_s=10)
