"""Small campaigns over sites behind Globus, and checks of their end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batch_sites import TASKS, events
from campaigns import PROJECT, command, environment, nano
from facilities.globus.agents import Agent, endpoint_environment
from facilities.globus.collection_folders import CollectionFolder
from facilities.globus.stack import Stack
from facilities.globus.transfer import Transfer
from site_policy import write_policy

from site_configs.library.resolve import resolve_site
from site_configs.library.site import Site
from workflows.globus.setup.template import EndpointOptions, environment_file, schema, training_template

HEARTBEATS = {"heartbeat_period: 30": "heartbeat_period: 5", "strategy_period: 5": "strategy_period: 1"}


class GlobusWorld:
    """Globus services, this machine's collection, and sites with an agent and a collection each.

    Attributes:
        stack: broker, Auth, Compute and the agents.
        transfer: Globus Transfer on the same service.
        root: folder of the files of all sites.
    """

    def __init__(self, stack: Stack, root: Path) -> None:
        self.stack, self.root = stack, root
        self.transfer = Transfer(stack.service, stack.auth)
        self.server: CollectionFolder = self.transfer.add_collection(root / "driver", "driver")
        self.sites: dict[str, CollectionFolder] = {}
        self.agents: dict[str, Agent] = {}
        self.entry: dict[str, Any] = {}

    def site(
        self,
        name: str,
        config: str = "local",
        variables: dict[str, str] | None = None,
        policy: dict[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Add a site, whose agent runs with the template that a user would get; return its entry of a campaign.

        Args:
            name: of the site.
            config: its machine.
            variables: that its workers inherit.
            policy: rules of its policy.
            settings: of the machine.
        """
        shared = self.root / f"{name}-exchange"
        collection = self.transfer.add_collection(shared, name, https=True, rules={"in": "rw", "out": "r"})
        self.sites[name] = collection
        entry = {
            "config": config,
            "route": "globus",
            "storage_root": str(self.root / name / "data"),
            "python_env": sys.prefix,
            "collection": collection.id,
            "collection_folder": str(shared),
            **settings,
        }
        # the endpoint has no id before it is set up, and the template does not depend on it
        made = resolve_site(name, config, Path("/nowhere"), {**_own(entry), "endpoint": collection.id})
        rules = {"python": f"{sys.prefix}/bin/python", "device": made.device, "launch": list(made.ranks.launch)}
        rules |= {"data": ["embedded"], "models": ["tiny"], "exchange": str(shared), **(policy or {})}
        path = write_policy(self.root / f"policy-{name}", self.root / name, **rules)
        template = training_template(made, EndpointOptions(endpoint_environment(), path))
        for slow, quick in HEARTBEATS.items():
            template = template.replace(slow, quick)
        own = {"PYTHONPATH": f"{self.root / name}:{PROJECT}", "OMP_NUM_THREADS": "1", **(variables or {})}
        self.agents[name] = self.stack.add_agent(name, template, own)
        complete(self.agents[name], made)
        return {**entry, "endpoint": self.agents[name].endpoint_id}

    def campaign(self, sites: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
        """Return the nano campaign over these sites, one family of tasks each."""
        with_tasks = {name: {**entry, "tasks": [TASKS[i]]} for i, (name, entry) in enumerate(sites.items())}
        data = {"per_task": 20, "tasks": list(TASKS[: len(sites)])}
        globus = {"collection": self.server.id, "folder": str(self.root / "driver")}
        return nano(sites=with_tasks, data=data, globus=globus, **changes)

    def start(self, *arguments: object, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start ``fl_round.py`` and return its process."""
        own = {**environment(), **self.stack.environment()}
        return subprocess.Popen(
            command(*arguments),
            cwd=folder or self.root / "driver",
            env=own,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def secrets(self) -> list[str]:
        """Return the texts that no file of a run or of a site may contain: the account's secret and all tokens."""
        return [self.stack.account.secret, *self.stack.auth._tokens]

    def close(self) -> None:
        for name in self.agents:
            self.stack.agents.pop(name).close()


def complete(agent: Agent, site: Site) -> None:
    """Write the files that a user gets with the template; they are read when a child of the agent starts."""
    folder = agent.root / agent.name
    (folder / "user_config_schema.json").write_text(json.dumps(schema(site)))
    if site.block and site.block.command_environment:
        (folder / "user_environment.yaml").write_text(environment_file(site.block.command_environment))


def _own(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "config"}


@contextmanager
def globus_world(stack: Stack, root: Path) -> Iterator[GlobusWorld]:
    world = GlobusWorld(stack, root)
    try:
        yield world
    finally:
        world.close()


def files_with(texts: list[str], *folders: Path) -> list[tuple[Path, str]]:
    """Return the files below these folders that contain one of these texts, with the text."""
    found = []
    for folder in folders:
        for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            content = path.read_bytes()
            found += [(path, text) for text in texts if text.encode() in content]
    return found


def compute_tasks(run_dir: Path, function: str = "apps.train:local_train") -> list[dict[str, Any]]:
    """Return the Compute tasks that were submitted for a function."""
    keys = {r["key"] for r in events(run_dir, "compute_submitting") if r["function"] == function}
    return [r for r in events(run_dir, "compute_submitted") if r["key"] in keys]
