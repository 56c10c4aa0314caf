"""slurmdbd with its own MariaDB: sacct, accounts and QOS for clusters."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from facilities.daemons import call, claim_ports, is_free, make_folders, program, start, start_munge, stop, wait_until
from facilities.slurm_conf import host_name

ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb", "mariadb-install-db")

DATABASE_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={munge_socket}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""

DATABASE_USER = """\
create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm';
grant all on slurm_acct.* to slurm@'127.0.0.1'
"""


@dataclass(frozen=True)
class Qos:
    """A quality of service: its name and limits in sacctmgr's terms, such as ``{"maxjobspu": "1"}``.

    A job beyond a limit is refused (``refuse``) or waits for ever.
    """

    name: str
    limits: Mapping[str, str] = field(default_factory=dict)
    refuse: bool = True


@dataclass
class Accounting:
    """A running slurmdbd: its port and the munged that clusters must share with it."""

    port: int
    munge_socket: Path
    root: Path
    clusters: set[str] = field(default_factory=set)
    qos: set[str] = field(default_factory=set)  # of all clusters: slurmdbd has one list

    def register(
        self, cluster: str, environment: Mapping[str, str], accounts: Sequence[str], qos: Sequence[Qos]
    ) -> None:
        """Register a cluster before its controller starts, which exits otherwise.

        Raises:
            ValueError: the name was used before; the ids of both clusters' jobs would be mixed up.
        """
        if cluster in self.clusters:
            raise ValueError(f"{cluster}: a cluster of that name is already in this accounting")
        self.clusters.add(cluster)
        user, names = getpass.getuser(), ",".join(("default", *accounts))
        levels = ",".join(("normal", *(q.name for q in qos)))
        rights = f"adminlevel=Admin qos={levels} defaultaccount=default"
        commands = [qos_command(q) for q in qos if q.name not in self.qos]
        commands += [f"add cluster {cluster}", f"add account {names} cluster={cluster}"]
        commands += [f"add user {user} account={names} cluster={cluster} {rights}"]
        self.qos |= {q.name for q in qos}
        for command in commands:
            call(["sacctmgr", "-i", *command.split()], environment)


def qos_command(qos: Qos) -> str:
    limits = [f"{key}={value}" for key, value in qos.limits.items()]
    limits += ["flags=DenyOnLimit"] if qos.refuse else []
    return f"add qos {qos.name} set {' '.join(limits)}" if limits else f"add qos {qos.name}"


@contextmanager
def slurm_accounting(root: Path) -> Iterator[Accounting]:
    """Yield accounting for the clusters of a test session; it takes some seconds to start.

    Args:
        root: folder with a short path; all files go into ``root/accounting``.
    """
    home = root / "accounting"
    make_folders(home)
    with ExitStack() as stack:
        claim, port = claim_ports(2)
        stack.enter_context(closing(claim))
        munge, munge_socket = start_munge(home)
        stack.callback(stop, [munge])
        stack.callback(stop, [start_database(home, port + 1)], 0)  # its data are not needed any more
        call([*client(home), "--execute", DATABASE_USER], {})
        stack.callback(stop, [start_database_daemon(home, port, munge_socket)], 0)
        wait_until("slurmdbd", lambda: not is_free(port), home / "log")
        yield Accounting(port, munge_socket, home)


def start_database(home: Path, port: int) -> subprocess.Popen[bytes]:
    data, user = home / "data", getpass.getuser()
    call([program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", f"--user={user}", *INSTALL_OPTIONS], {})
    options = [f"--datadir={data}", f"--user={user}", f"--socket={home}/run/mariadb.sock", f"--port={port}"]
    options += [f"--pid-file={home}/run/mariadb.pid", f"--log-error={home}/log/mariadb.log", *SERVER_OPTIONS]
    process = start(["mariadbd", "--no-defaults", *options], home / "log" / "mariadb.out")
    try:
        wait_until("MariaDB", lambda: bool(call([*client(home), "--execute", "select 1"], {})), home / "log")
    except BaseException:
        stop([process])
        raise
    return process


INSTALL_OPTIONS = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
# The database is used for one test run: durability is not needed.
SERVER_OPTIONS = (
    "--bind-address=127.0.0.1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-lock-wait-timeout=900",
    "--skip-name-resolve",
    "--skip-log-bin",
)


def client(home: Path) -> list[str]:
    return ["mariadb", "--no-defaults", f"--socket={home}/run/mariadb.sock", "--user=root"]


def start_database_daemon(home: Path, port: int, munge_socket: Path) -> subprocess.Popen[bytes]:
    places = {"munge_socket": munge_socket, "host": host_name(), "port": port, "database_port": port + 1}
    path = home / "etc" / "slurmdbd.conf"
    path.touch(mode=0o600)  # slurmdbd refuses a file with its password that others may read
    path.write_text(DATABASE_DAEMON.format(user=getpass.getuser(), root=home, **places))
    return start(["slurmdbd", "-D"], home / "log" / "slurmdbd.out", SLURM_CONF=str(path))
