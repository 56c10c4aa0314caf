"""The points of a scaling study: sites at several sizes, each with the plan that the memory planner chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from apps.base.errors import UserMistake
from apps.ranks.parallel import Parallel
from apps.train import SiteWork
from apps.training.spec import TrainingSpec
from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.site import Site
from workflows.console.units import plural
from workflows.planning.campaign import Campaign, ParallelSection
from workflows.planning.memory.campaign import training_setup
from workflows.planning.memory.model import ModelShape
from workflows.planning.memory.plan import MemoryPlan, machine_of, plan_site
from workflows.planning.plan import Plan

NEVER_S = 1e9  # interval of checkpoints, so that none falls into the measurement


@dataclass(frozen=True)
class Sizes:
    """Requested sizes: nodes of batch sites, ranks of sites on this machine, samples of a device in one pass."""

    nodes: tuple[int, ...]
    ranks: tuple[int, ...]
    micro_batch: int


@dataclass(frozen=True)
class ScalingPoint:
    """A site at one size."""

    site: Site
    memory: MemoryPlan

    @property
    def key(self) -> tuple[str, int, int]:
        """Return site, nodes and devices."""
        return self.site.name, self.memory.machine.nodes, self.memory.machine.ranks

    @property
    def sharding(self) -> str:
        """Return the sharding, with ``+ckpt`` and ``+offload`` if the plan has them."""
        choice = self.memory.choice
        return choice.sharding + "+ckpt" * choice.checkpoint + "+offload" * choice.offload

    @property
    def name(self) -> str:
        """Return site and size for the user."""
        name, nodes, devices = self.key
        return f"{name}, {plural(nodes, 'node')}, {plural(devices, 'device')}"


def points_of(
    campaign: Campaign, run_dir: Path, shape: ModelShape | None, sizes: Sizes
) -> tuple[list[ScalingPoint], list[str]]:
    """Return all points that fit, and a message for each that does not.

    Raises:
        UserMistake: a site cannot be configured at a size, for example because no queue has so many nodes.
    """
    points, refused = [], []
    for name in campaign.sites:
        for site in _sites_at_sizes(name, campaign, run_dir, sizes):
            try:
                points.append(ScalingPoint(site, _plan(site, campaign, shape, sizes.micro_batch)))
            except UserMistake as error:
                refused.append(str(error))
    return points, refused


def _plan(site: Site, campaign: Campaign, shape: ModelShape | None, micro_batch: int) -> MemoryPlan:
    batch = micro_batch * machine_of(site).ranks
    return plan_site(site, shape, training_setup(campaign), batch, ParallelSection(micro_batch=micro_batch))


def _sites_at_sizes(name: str, campaign: Campaign, run_dir: Path, sizes: Sizes) -> list[Site]:
    """Return a batch site at all numbers of nodes, or one on this machine at all numbers of ranks."""
    entry = campaign.sites[name]
    config, settings = entry.config or name, entry.settings
    first = _resolved(name, config, run_dir, settings)
    if first.block:
        return [_resolved(name, config, run_dir, {**settings, "nodes": nodes}) for nodes in sizes.nodes]
    return [_resolved(name, config, run_dir, {**settings, "ranks": ranks}) for ranks in sizes.ranks]


def _resolved(name: str, config: str, run_dir: Path, settings: Mapping[str, Any]) -> Site:
    try:
        return resolve_site(name, config, run_dir, settings)
    except SiteConfigError as error:
        raise UserMistake(f"sites.{name}: {error}") from None


def waves(points: Sequence[ScalingPoint]) -> list[list[ScalingPoint]]:
    """Return the groups of points that are measured at the same time.

    Sites of this machine share its cores and are measured one at a time; batch sites are measured side by side, each
    with one size at a time: a site's storage is used by one training, and queues limit a user's jobs.
    """
    alone = [[point] for point in points if not point.site.block]
    batch: dict[str, list[ScalingPoint]] = {}
    for point in points:
        if point.site.block:
            batch.setdefault(point.site.name, []).append(point)
    longest = max((len(own) for own in batch.values()), default=0)
    return [[own[i] for own in batch.values() if i < len(own)] for i in range(longest)] + alone


def plan_for(plan: Plan, wave: Sequence[ScalingPoint]) -> Plan:
    """Return the campaign's plan with the sites of these points only, with the sharding of their memory plans."""
    work = {p.site.name: _work(plan.site_work[p.site.name], p) for p in wave}
    return replace(plan, sites={p.site.name: p.site for p in wave}, site_work=work)


def _work(work: SiteWork, point: ScalingPoint) -> SiteWork:
    parallel = cast(Parallel, point.memory.parallel(point.site))
    site = point.site
    folders = {"root": str(site.storage_root), "out": str(site.outgoing)}
    return cast(SiteWork, {**work, **folders, "threads": site.threads, "parallel": parallel})


def training_of(campaign: Campaign, point: ScalingPoint, steps: int) -> TrainingSpec:
    """Return a training of ``steps`` steps with the campaign's settings, of one micro-batch per device and step."""
    spec: dict[str, Any] = {
        **campaign.training.model_dump(),
        "steps": steps,
        "accumulate": 1,
        "keep_optimizer": False,
        "batch_size": point.memory.choice.micro_batch * point.memory.machine.ranks,
        "schedule": "constant",
        "warmup_steps": 0,
        "start_step": 0,
        "total_steps": 0,
        "device": point.site.device,
        "checkpoint_s": NEVER_S,
        "until": None,
    }
    return cast(TrainingSpec, spec)
