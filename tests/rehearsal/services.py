"""The hosted services of Globus in the world of a rehearsal, and the endpoint of a facility, set up by its checklist.

Broker, SDKs and agents are genuine; Auth, the Compute service and Transfer are the stand-ins of ``facilities.globus``.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from facilities.globus.collection_folders import CollectionFolder
from facilities.globus.rabbit import rabbit_broker
from facilities.globus.stack import Stack, client_variables, globus_stack
from facilities.globus.transfer import Transfer
from patience import patience

from rehearsal.commands import RehearsalError
from rehearsal.facility import WORLD_ADDRESS
from rehearsal.world import Place

AMQP_PORT = 443  # the port that the project's own configuration of an agent names
SHORTER = {"heartbeat_period: 30": "heartbeat_period: 5", "strategy_period: 5": "strategy_period: 1"}
RULES = {"in": "rw", "out": "r"}


@dataclass
class Services:
    """Globus.

    Attributes:
        stack: broker, Auth and Compute.
        transfer: Transfer.
        collections: by the name of their place.
    """

    stack: Stack
    transfer: Transfer
    collections: dict[str, CollectionFolder] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """Return the variables of a client: whose account, and where the services are."""
        return client_variables(self.stack.service, self.stack.account)

    def add_collection(self, place: Place, folder: str) -> str:
        """Show a folder of a place as a collection, with the permissions of the checklist; return its id."""
        collection = self.transfer.add_collection(place.path(folder), place.facility.name, https=True, rules=RULES)
        self.collections[place.facility.name] = collection
        return collection.id

    def wait_online(self, place: Place, endpoint: str, limit_s: float = 120) -> None:
        """Wait for the first heartbeat of an endpoint."""
        end = time.monotonic() + patience(limit_s)
        endpoints = self.stack.compute.endpoints
        while endpoint not in endpoints.known or not endpoints.is_online(endpoint):
            if time.monotonic() > end:
                raise RehearsalError(f"the endpoint of {place.facility.name} is not online: {place.words()}")
            time.sleep(0.2)


@contextmanager
def globus_services(root: Path) -> Iterator[Services]:
    with rabbit_broker(root / "mq", WORLD_ADDRESS, AMQP_PORT) as broker:
        with globus_stack(root / "globus", broker, WORLD_ADDRESS) as stack:
            yield Services(stack, Transfer(stack.service, stack.auth))


def write_setup(
    driver: Place, place: Place, services: Services, config: str, settings: Mapping[str, object], with_files: bool
) -> str:
    """Run ``setup_site.py`` for a facility with the driver's login; return the folder that it has written.

    Args:
        driver: where the campaign's driver will run.
        place: the facility.
        services: Globus.
        config: its machine file, at the driver's place.
        settings: of the site.
        with_files: also set up the endpoint on the login node.
    """
    name, project = place.facility.name, driver.facility.project
    sets = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    sets += "" if with_files else " --no-files"
    login = " ".join(f"{key}={shlex.quote(value)}" for key, value in services.variables().items())
    line = f"{driver.facility.environment}/bin/python {project}/project/workflows/setup_site.py {config} --site {name}"
    written = f"{project}/endpoints/{name}"
    driver.run(f"env {login} {line} {sets} --out {written}")
    return written


def fill_in_policy(folder: Path, data: str, model: str) -> None:
    """Do what a site's operator does with ``crossfed-site.yaml``: name the records and the base model."""
    path = folder / "crossfed-site.yaml"
    policy = yaml.safe_load(path.read_text()) | {"data": [data], "models": [model]}
    path.write_text(yaml.safe_dump(policy))


def set_up_endpoint(
    driver: Place, place: Place, services: Services, written: str, operator: Callable[[Path], None], with_files: bool
) -> dict[str, str]:
    """Do at a facility what its checklist says; return the endpoint settings of the site.

    Args:
        driver: where the campaign's driver will run.
        place: the facility.
        services: Globus.
        written: folder that ``setup_site.py`` has written.
        operator: edits the policy in the site's folder.
        with_files: also set up the endpoint on the login node.
    """
    there = f"{place.facility.project}/crossfed-endpoints/{place.facility.name}"
    folder = place.path(there)
    shutil.copytree(driver.path(written), folder)
    folder.chmod(0o700)
    operator(folder)
    known = {k: v for k, v in services.variables().items() if k != "GLOBUS_SDK_ENVIRONMENT"} | {"SPT_NOENV": "1"}
    account = folder / "account.env"
    account.touch(mode=0o600)
    account.write_text("".join(f"{key}={shlex.quote(value)}\n" for key, value in known.items()))
    names = ["train", "files"] if with_files else ["train"]
    for endpoint in names:
        _for_local_services(folder / endpoint)
    place.run(f"cd {there} && ./endpoints.sh start")
    found = {endpoint: _registered(place, folder / endpoint) for endpoint in names}
    for endpoint in found.values():
        services.wait_online(place, endpoint)
    return {"endpoint": found["train"]} | ({"files_endpoint": found["files"]} if with_files else {})


def _for_local_services(folder: Path) -> None:
    """Point an agent at the services of the rehearsal, and let it and its children react sooner."""
    for name in ("config.yaml", "user_config_template.yaml.j2"):
        text = (folder / name).read_text()
        for slow, quick in SHORTER.items():
            text = text.replace(slow, quick)
        (folder / name).write_text(text)
    with (folder / "config.yaml").open("a") as file:
        file.write("local_compute_services: true\n")


def _registered(place: Place, folder: Path, limit_s: float = 120) -> str:
    end = time.monotonic() + patience(limit_s)
    while time.monotonic() < end:
        try:
            return str(json.loads((folder / "endpoint.json").read_text())["endpoint_id"])
        except (FileNotFoundError, ValueError, KeyError):
            time.sleep(0.2)
    log = folder.parent / f"{folder.name}.log"
    words = log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
    raise RehearsalError(f"{place.facility.name}: endpoint {folder.name} was not registered: {words}")
