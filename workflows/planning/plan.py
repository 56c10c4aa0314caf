"""The plan of a campaign: its sites and what each task gets, after all checks that need no job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from apps.artifacts.lora import METHODS
from apps.artifacts.update_checks import UpdateRules
from apps.base.errors import UserMistake
from apps.base.versions import code_version
from apps.evaluation.losses import EvaluationSettings, EvaluationWork
from apps.models.adapter import AdapterSpec
from apps.models.batches import DataSpec
from apps.models.model import ModelSpec, sends_bfloat16
from apps.models.sources import PACKAGED, TINY, check_source, config_of, is_converted
from apps.ranks.parallel import Parallel, ranks_of
from apps.server import ServerWork
from apps.train import SiteWork
from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.site import Site
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.labels import EVALUATOR, SERVER, SERVER_BLOCK, TRANSFERS
from workflows.planning.memory.campaign import plan_memory
from workflows.planning.memory.plan import MemoryPlan
from workflows.planning.number_types import check_types
from workflows.planning.places import ServerPlace, server_places
from workflows.planning.shares import Tasks, expanded, share_tasks
from workflows.planning.storage import check_collections, check_space, check_storage

RESERVED_NAMES = (SERVER, SERVER_BLOCK, EVALUATOR, TRANSFERS, "global")


@dataclass(frozen=True)
class Plan:
    """A checked campaign with everything it needs to run, in the plain values that tasks take."""

    campaign: Campaign
    sites: dict[str, Site]
    tasks: dict[str, Tasks]
    site_work: dict[str, SiteWork]
    server_work: ServerWork
    evaluation_work: EvaluationWork
    rules: UpdateRules
    memory: dict[str, MemoryPlan]  # of the sites that need one
    server_at: ServerPlace
    evaluation_at: ServerPlace

    @property
    def machines(self) -> dict[str, Site]:
        """The machines of all executors by label: the sites, and the places of the server's own work."""
        return {**self.sites, **{place.label: place.site for place in (self.server_at, self.evaluation_at)}}

    @property
    def server_blocks(self) -> list[str]:
        """The labels of the blocks that only the server's own work has."""
        return [label for label, site in self.machines.items() if label not in self.sites and site.own_block]


def make_plan(campaign: Campaign, run_dir: Path, source: Path) -> Plan:
    """Check a campaign against its sites and its data, and return its plan.

    Args:
        campaign: as read.
        run_dir: the run directory, which need not exist.
        source: the campaign's file, for errors.

    Raises:
        UserMistake: the first thing that cannot work, with the file and the key.
    """
    try:
        return _make_plan(campaign, run_dir)
    except UserMistake as error:
        lines = "\n".join(f"{source}: {line}" for line in error.what.splitlines())
        raise UserMistake(lines, remedy=error.remedy) from None


def _make_plan(campaign: Campaign, run_dir: Path) -> Plan:
    _check_names(campaign)
    check_source(campaign.model.source)
    check_types(campaign)
    _check_layers(campaign)
    all_tasks = expanded("data.tasks", campaign.data.tasks, campaign.data.source)
    tasks = share_tasks(campaign, all_tasks)
    sites = _sites(campaign, run_dir)
    _check_threads(campaign, sites)
    check_storage(sites)
    check_collections(campaign, sites, run_dir)
    check_space(run_dir)
    model, store = model_spec(campaign), str(run_dir / "artifacts")
    server_at, evaluation_at = server_places(campaign, sites, run_dir)
    memory = plan_memory(campaign, model, {name: site for name, site in sites.items() if not is_simple(site)})
    adapter = campaign.model.adapter
    return Plan(
        campaign=campaign,
        sites=sites,
        tasks=tasks,
        site_work={
            name: _site_work(campaign, site, tasks[name], model, memory.get(name)) for name, site in sites.items()
        },
        server_work=ServerWork(store=store, model=model, threads=1, code_version=code_version()),
        evaluation_work=_evaluation_work(campaign, store, model, all_tasks),
        server_at=server_at,
        evaluation_at=evaluation_at,
        rules=UpdateRules(
            method=adapter.method if adapter else "full",
            max_update_norm=campaign.checks.max_update_norm,
            changes=sends_bfloat16(model),
        ),
        memory=memory,
    )


def is_simple(site: Site) -> bool:
    """Return True for one process on this machine's processors, whose memory needs no plan."""
    return site.block is None and site.device == "cpu" and site.ranks.per_node == 1


def _check_names(campaign: Campaign) -> None:
    for name in campaign.sites:
        if name in RESERVED_NAMES or not name.replace("-", "").replace("_", "").isalnum():
            raise UserMistake(f"sites.{name}: choose another name: letters, digits, - and _, none of {RESERVED_NAMES}")


def _check_threads(campaign: Campaign, sites: Mapping[str, Site]) -> None:
    """Raise UserMistake for more threads of one process than this machine has cores: it would be many times slower."""
    cores = os.cpu_count() or 1
    asked = {f"sites.{name}.threads": site.threads for name, site in sites.items() if site.route == "local"}
    if campaign.evaluation.site is None:  # elsewhere they are another machine's cores
        asked["evaluation.threads"] = 0 if campaign.evaluation.threads == "auto" else campaign.evaluation.threads
    for key, threads in asked.items():
        if threads > cores:
            raise UserMistake(
                f"{key}: {threads}, but this machine has {plural(cores, 'core')}",
                remedy=f"Use at most {cores}, divided by the number of processes that train here at a time",
            )


def _check_layers(campaign: Campaign) -> None:
    """Raise UserMistake if the adapter is for more layers than a model has that comes with the project.

    Others are checked with their network (``workflows/checks/model.py``).
    """
    adapter, source = campaign.model.adapter, campaign.model.source
    if not adapter or not adapter.last_layers:
        return
    assert adapter.method in METHODS
    if source == TINY:
        layers = campaign.model.tiny.layers if campaign.model.tiny else 0
    elif source in PACKAGED and is_converted(source):
        layers = config_of(source)["num_hidden_layers"]
    else:
        return
    if adapter.last_layers > layers:
        raise UserMistake(
            f"model.adapter.last_layers: {adapter.last_layers}, but {source} has {plural(layers, 'layer')}"
        )


def _sites(campaign: Campaign, run_dir: Path) -> dict[str, Site]:
    """Resolve all sites; raise UserMistake with a line for each that cannot be."""
    sites, problems = {}, []
    for name, entry in campaign.sites.items():
        try:
            sites[name] = resolve_site(name, entry.config or name, run_dir, entry.settings)
        except SiteConfigError as error:
            problems.append(f"sites.{name}: {error}")
    if problems:
        raise UserMistake("\n".join(problems))
    return sites


def model_spec(campaign: Campaign) -> ModelSpec:
    """Return the campaign's model as tasks take it."""
    section = campaign.model
    adapter: AdapterSpec | None = section.adapter.model_dump() if section.adapter else None  # type: ignore[assignment]
    tiny = section.tiny.model_dump() if section.tiny else None
    return ModelSpec(
        source=section.source,
        dtype=section.dtype,
        seed=campaign.seed,
        adapter=adapter,
        tiny=tiny,
        traffic=section.traffic,
    )


def _data_spec(campaign: Campaign, source: str, tasks: Tasks, per_task: int | None) -> DataSpec:
    data = campaign.data
    return DataSpec(
        source=source,
        tasks=list(tasks),
        per_task=per_task,
        max_tokens=data.max_tokens,
        prompt=data.prompt,
        loss_on=data.loss_on,
    )


def _site_work(campaign: Campaign, site: Site, tasks: Tasks, model: ModelSpec, memory: MemoryPlan | None) -> SiteWork:
    entry = campaign.sites[site.name]
    if entry.model:
        model = ModelSpec(**{**model, "source": entry.model})
    return SiteWork(
        root=str(site.storage_root),
        out=str(site.outgoing),
        shared=str(site.shared_folder or ""),
        model=model,
        seed=campaign.seed,
        threads=site.threads,
        data=_data_spec(campaign, entry.data or campaign.data.source, tasks, campaign.data.per_task),
        code_version=code_version(),
        parallel=cast(Parallel, memory.parallel(site)) if memory else one_rank(campaign, site),
    )


def one_rank(campaign: Campaign, site: Site) -> Parallel:
    """Return how a site trains that needs no memory plan: in the worker itself."""
    wanted = campaign.parallel.micro_batch
    return Parallel(
        nodes=1,
        ranks_per_node=1,
        sharding="none",
        offload=False,
        checkpoint_activations=campaign.parallel.checkpoint_activations is True,
        micro_batch=campaign.training.batch_size if wanted == "auto" else wanted,
        backend=site.ranks.backend,
        launch=[],
        interface="",
    )


def _evaluation_work(campaign: Campaign, store: str, model: ModelSpec, tasks: Tasks) -> EvaluationWork:
    section = campaign.evaluation
    return EvaluationWork(
        store=store,
        model=model,
        split=section.split,
        data=_data_spec(campaign, campaign.data.source, tasks, section.per_task),
        code_version=code_version(),
    )


def evaluation_settings(plan: Plan) -> EvaluationSettings:
    """Return how evaluation runs at its place."""
    section, site = plan.campaign.evaluation, plan.evaluation_at.site
    there = plan.site_work.get(site.name)
    device = site.device if section.device == "auto" else section.device
    return EvaluationSettings(
        batch_size=section.batch_size,
        precision=plan.campaign.training.precision,
        parallel=ranks_for_evaluation(plan, site, there) if device == site.device else None,
        root=there["root"] if there else str(site.storage_root),
        source=(plan.campaign.sites[site.name].model if there else None) or "",
        threads=site.threads if section.threads == "auto" else section.threads,
        device=device,
    )


def ranks_for_evaluation(plan: Plan, site: Site, there: SiteWork | None) -> Parallel | None:
    """Return the ranks that evaluate: those that train at a site, all of a block of its own; None: its worker."""
    if there:
        return there["parallel"] if ranks_of(there["parallel"]) > 1 else None
    nodes = site.block.nodes if site.block else 1
    if nodes * site.ranks.per_node == 1:
        return None
    return Parallel(
        nodes=nodes,
        ranks_per_node=site.ranks.per_node,
        sharding="full_shard",
        offload=False,
        checkpoint_activations=False,
        micro_batch=plan.campaign.evaluation.batch_size,
        backend=site.ranks.backend,
        launch=list(site.ranks.launch),
        interface=site.ranks.interface,
    )
