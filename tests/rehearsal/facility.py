"""The four machines as the rehearsal builds them: names, networks, file systems, schedulers, launchers.

Host names, mount points and queues are those of the facilities' guides that ``site_configs`` cites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NODES, RANKS_A_NODE = 2, 2
PACKAGES, AGENT_PACKAGES, SYSTEM = "/opt/packages", "/opt/agent-packages", "/opt/system"


@dataclass(frozen=True)
class Facility:
    """One machine.

    Attributes:
        name: of its site in the campaign.
        number: third part of its network addresses.
        login: host name of the login node.
        nodes: host names of the compute nodes.
        driver_interface: interface of the login node that compute nodes reach.
        storage: mount point of the project's file system, which nodes and login node share.
        scheduler: its kind.
        account: allocation that pays.
        cores, gpus: of a node.
        launcher: variables that its launcher sets, see ``pals``; empty: Slurm's own srun.
        system: value of ``system=`` in a select, for PBS; features of a node, for Slurm.
        filesystems: names that jobs may request, for PBS.
        starts_in_home: jobs start in $HOME, with an environment of their own.
    """

    name: str
    number: int
    login: str
    nodes: tuple[str, ...]
    driver_interface: str
    storage: str
    scheduler: Literal["pbs", "slurm"]
    account: str
    cores: int
    gpus: int
    launcher: str = ""
    system: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()

    @property
    def project(self) -> str:
        """Return the folder of the project that pays."""
        return f"{self.storage}/{self.account}"

    @property
    def environment(self) -> str:
        """Return the folder of the Python environment with this project."""
        return f"{self.project}/env"

    @property
    def login_address(self) -> str:
        return f"10.90.{self.number}.1"

    def node_addresses(self) -> Mapping[str, str]:
        """Return the address of each node on the machine's own network."""
        return {node: f"10.90.{self.number}.{11 + i}" for i, node in enumerate(self.nodes)}

    @property
    def outside_address(self) -> str:
        """Return the address of the login node on the internet of the rehearsal."""
        return f"10.77.{self.number}.2"

    @property
    def gateway(self) -> str:
        return f"10.77.{self.number}.1"


WORLD_ADDRESS = "10.77.0.1"  # of the hosted services, reached from every login node

AURORA = Facility(
    name="aurora",
    number=1,
    login="aurora-uan-0010",
    nodes=("x4310c2s4b0n0", "x4310c2s5b0n0"),
    driver_interface="hsn0",
    storage="/flare",
    scheduler="pbs",
    account="ChemFed",
    cores=208,
    gpus=0,  # its select asks for none
    launcher="aurora",
    filesystems=("home", "flare", "daos_user"),
)
POLARIS = Facility(
    name="polaris",
    number=2,
    login="polaris-login-02",
    nodes=("x3006c0s13b0n0", "x3006c0s13b1n0"),
    driver_interface="bond0",
    storage="/eagle",
    scheduler="pbs",
    account="ChemFed",
    cores=64,
    gpus=4,
    launcher="polaris",
    system=("polaris",),
    filesystems=("home", "eagle"),
)
FRONTIER = Facility(
    name="frontier",
    number=3,
    login="login07",
    nodes=("frontier08311", "frontier08312"),
    driver_interface="hsn0",
    storage="/lustre/orion",
    scheduler="slurm",
    account="chm999",
    cores=56,
    gpus=8,
)
PERLMUTTER = Facility(
    name="perlmutter",
    number=4,
    login="login11",
    nodes=("nid001048", "nid001049"),
    driver_interface="hsn0",
    storage="/pscratch",
    scheduler="slurm",
    account="m9999_g",
    cores=128,
    gpus=4,
    system=("gpu",),
)
FACILITIES = {facility.name: facility for facility in (AURORA, POLARIS, FRONTIER, PERLMUTTER)}
