"""The shipped campaign made small: the file itself, and what ``--set`` changes in it, each with its reason."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rehearsal.facility import NODES, RANKS_A_NODE, Facility
from rehearsal.world import Place

SHIPPED = "workflows/campaigns/smolinstruct_llama2_7b.yaml"


@dataclass
class SmallCampaign:
    """The campaign's command line.

    Attributes:
        driver: place of the driver.
        name: of the run.
        sets: ``--set`` values by key.
        variables: of the driver's shell.
    """

    driver: Place
    name: str = "flagship"
    sets: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.driver.facility.project}/campaigns"

    @property
    def run_dir(self) -> str:
        return f"{self.folder}/runs/{self.name}"

    def begin(self, *options: str) -> list[str]:
        """Return the command of the first driver."""
        words = [self._script("fl_round.py"), f"{self.driver.facility.project}/project/{SHIPPED}"]
        words += ["--name", self.name, *options]
        words += [word for key, value in self.sets.items() for word in ("--set", f"{key}={value}")]
        return self._shell(words)

    def resume(self) -> list[str]:
        """Return the command of a later driver."""
        return self._shell([self._script("fl_round.py"), "--resume", self.run_dir])

    def _script(self, name: str) -> str:
        return f"{self.driver.facility.project}/project/workflows/{name}"

    def _shell(self, words: list[str]) -> list[str]:
        python = f"{self.driver.facility.environment}/bin/python"
        line = f"mkdir -p {self.folder} && cd {self.folder} && exec {python} {shlex.join(words)}"
        return self.driver.shell(line, self.variables)


def small_values(driver: Facility, rounds: int, steps: int) -> dict[str, Any]:
    """Return the campaign's values that are made small, or that name what each user has in another place."""
    return {
        "model.source": model_folder(driver),
        "data.source": records_file(driver),
        "rounds": rounds,
        "training.steps": steps,
        "training.checkpoint_s": 2,
        "evaluation.per_task": 2,
        "evaluation.device": "auto",
        "retries": 5,
    }


def site_values(place: Place, config: str) -> dict[str, Any]:
    """Return the settings of a site that each user has to give, and the two ranks a node of the rehearsal."""
    facility = place.facility
    return {
        "config": config,
        "account": facility.account,
        "storage_root": storage_root(facility),
        "ranks_per_node": RANKS_A_NODE,
        "data": records_file(facility),
    }


def remote_values(facility: Facility, collection: str, endpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a site behind Globus."""
    return {
        "route": "globus",
        **endpoints,
        "collection": collection,
        "collection_folder": shared_folder(facility),
        "python_env": facility.environment,
        "model": model_folder(facility),
    }


def local_values(sites: Sequence[str], records: str) -> dict[str, Any]:
    """Return the settings of the same sites as processes of the driver's host, with as many ranks."""
    entry = {"config": "local", "route": "local", "ranks": NODES * RANKS_A_NODE, "data": records}
    places = {"server.site": "null", "evaluation.site": "null"}
    return places | {f"sites.{site}.{key}": value for site in sites for key, value in entry.items()}


def storage_root(facility: Facility) -> str:
    return f"{facility.project}/crossfed"


def shared_folder(facility: Facility) -> str:
    return f"{storage_root(facility)}-exchange"


def records_file(facility: Facility) -> str:
    return f"{facility.project}/crossfed-records/smolinstruct/data.zip"


def model_folder(facility: Facility) -> str:
    return f"{facility.project}/models/Llama-2-7b-hf"
