"""A private RabbitMQ node: state in one folder, free ports, ended with the process that started it."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facilities.daemons import (
    SEARCH_PATH,
    FacilityError,
    claim_ports,
    kill_processes,
    make_folders,
    processes_of,
    start,
    stop,
    wait_until,
)

# Debian's program in sbin changes to another user; this is the program that it calls.
SERVER_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/local/lib/rabbitmq/sbin/rabbitmq-server")
USER = "crossfed"


def server_program() -> str | None:
    """Return the program that runs a node in the foreground, or ``None`` if RabbitMQ is missing."""
    places = (shutil.which(place) for place in (*SERVER_PLACES, "rabbitmq-server"))
    return next((place for place in places if place is not None), None)


def missing_broker_programs() -> list[str]:
    """Return the programs that must be installed before a node can run."""
    missing = [name for name in ("epmd", "setpriv") if shutil.which(name, path=SEARCH_PATH) is None]
    return missing if server_program() else ["rabbitmq-server", *missing]


class RabbitBroker:
    """A node that can be stopped, killed and started again on its port; durable queues are kept.

    Attributes:
        url: URL for clients on this machine, with user and password.
        root: folder of all its files.
    """

    def __init__(self, root: Path, first_port: int, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.root, self.host, self.port = root, host, port or first_port
        self._distribution_port, self._epmd_port = first_port + 1, first_port + 2
        self._password = secrets.token_hex(8)
        self._processes: list[subprocess.Popen[bytes]] = []
        make_folders(root)
        (root / "etc" / "rabbitmq.conf").write_text(self._configuration())
        (root / "etc" / "enabled_plugins").write_text("[].\n")
        cookie = root / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{self._password}@{self.host}:{self.port}/%2F"

    def start(self, limit_s: float = 120) -> None:
        """Start the node and wait until it accepts connections."""
        program = server_program()
        if program is None:
            raise FacilityError("rabbitmq-server is not installed")
        log, variables = self.root / "log", self._variables()
        epmd = start(["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)], log / "epmd.out", **variables)
        self._processes.append(epmd)
        node = start([program], log / "node.out", **variables)
        self._processes.append(node)

        def listens() -> bool:
            if node.poll() is not None:
                raise ProcessLookupError(f"RabbitMQ ended with {node.returncode}: see {log}")
            with socket.socket() as client:
                return client.connect_ex((self.host, self.port)) == 0

        try:
            wait_until("RabbitMQ", listens, log, limit_s)
        except (FacilityError, ProcessLookupError):
            self.kill()
            raise

    def stop(self) -> None:
        """End the node in order."""
        stop(reversed(self._processes[1:]), patience_s=30)
        self.kill()

    def kill(self) -> None:
        """Kill the node, as a power cut would."""
        stop(self._processes, patience_s=0)
        self._processes.clear()
        kill_processes(processes_of(self.root))

    def restart(self, limit_s: float = 120) -> None:
        self.stop()
        self.start(limit_s)

    def _configuration(self) -> str:
        return (
            f"listeners.tcp.1 = {self.host}:{self.port}\nloopback_users = none\n"
            f"default_user = {USER}\ndefault_pass = {self._password}\nlog.console.level = warning\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
        )

    def _variables(self) -> dict[str, str]:
        root = self.root
        # this flag has no effect: the folder in the command line identifies the process
        on_loopback = f"-crossfed {root}/ -kernel inet_dist_use_interface {{127,0,0,1}}"
        return {
            "HOME": str(root),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_NODENAME": f"crossfed{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(root / "etc" / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "etc" / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(root / "etc" / "none.conf"),
            "RABBITMQ_MNESIA_BASE": str(root / "state"),
            "RABBITMQ_LOG_BASE": str(root / "log"),
            "RABBITMQ_PID_FILE": str(root / "run" / "node.pid"),
            # two schedulers without busy waiting: the tests need the cores
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{on_loopback} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            # the start script becomes the node instead of its parent: one process to signal
            "RUNNING_UNDER_SYSTEMD": "1",
        }


@contextmanager
def rabbit_broker(root: Path, host: str = "127.0.0.1", port: int | None = None) -> Iterator[RabbitBroker]:
    """Yield a node in a folder, which must have a short path, at an address; without a port at a free one."""
    claim, first_port = claim_ports(3)
    with claim:
        broker = RabbitBroker(root, first_port, host, port)
        try:
            broker.start()
            yield broker
        finally:
            broker.stop()
