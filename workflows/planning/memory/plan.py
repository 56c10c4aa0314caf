"""Choose how a site's training is spread: the first way that fits, in a fixed order from the fastest to the smallest.

``estimate`` has the memory that each way needs, ``speed`` an estimate of its speed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.base.errors import UserMistake
from apps.models.adapter import AdapterSpec
from site_configs.library.site import Site
from workflows.console.units import bytes_text, plural
from workflows.planning.campaign import AUTO, ParallelSection
from workflows.planning.memory.estimate import SHARDED, Choice, Machine, Need, Sharding, TrainingSetup, need_of
from workflows.planning.memory.model import ModelShape

ROOM = 0.92  # of a device's memory that a plan may fill
HOST_ROOM = 0.9
MOST_NODES = 1024  # more are not proposed
# From fast to slow. Computing activations again costs a third more arithmetic; full sharding moves the weights once
# more; offloading waits for the bus and the processor. Keeping gathered weights makes no sense with offloading: they
# would take the device memory that it frees.
ORDER: tuple[tuple[Sharding, bool, bool], ...] = (
    ("ddp", False, False),
    ("shard_grad_op", False, False),
    ("ddp", True, False),
    ("shard_grad_op", True, False),
    ("full_shard", False, False),
    ("full_shard", True, False),
    ("full_shard", False, True),
    ("full_shard", True, True),
)


@dataclass(frozen=True)
class MemoryPlan:
    """Memory plan of a site: how its training is spread.

    Attributes:
        site: its name in the campaign.
        machine: the hardware that the plan is for.
        batch: samples that the ranks share.
        choice: the chosen way.
        need: the memory it needs; None if the model or the memory is unknown here and nothing was checked.
        note: a remark for people.
    """

    site: str
    machine: Machine
    batch: int
    choice: Choice
    need: Need | None
    note: str = ""

    @property
    def idle_ranks(self) -> int:
        """Number of ranks that get no sample of a batch."""
        return max(0, self.machine.ranks - self.batch)

    @property
    def occupancy(self) -> float:
        """Samples of a batch, as a share of those that the ranks could process in the same time: above 0, at most 1."""
        return self.batch / (self.machine.ranks * math.ceil(self.batch / self.machine.ranks))

    def parallel(self, site: Site) -> dict[str, Any]:
        """Return the plain values that the trainer takes."""
        return {
            "nodes": self.machine.nodes,
            "ranks_per_node": self.machine.ranks_per_node,
            "sharding": self.choice.sharding,
            "offload": self.choice.offload,
            "checkpoint_activations": self.choice.checkpoint,
            "micro_batch": self.choice.micro_batch,
            "backend": site.ranks.backend,
            "launch": list(site.ranks.launch),
            "interface": site.ranks.interface,
        }


def machine_of(site: Site) -> Machine:
    """Return the hardware of a site; without a node description only this machine's memory is known."""
    nodes = site.block.nodes if site.block else 1
    ranks, on_cpu = site.ranks.per_node, site.device == "cpu"
    host = site.node.memory_bytes if site.node else _memory_here() if site.route == "local" else 0
    device = host // ranks if on_cpu else site.node.device_memory_bytes if site.node else 0
    return Machine(nodes, ranks, device, host, accelerator=not on_cpu)


def _memory_here() -> int:
    import psutil

    return psutil.virtual_memory().total


def plan_site(
    site: Site,
    shape: ModelShape | None,
    setup: TrainingSetup,
    batch: int,
    section: ParallelSection,
    unknown: str = "the model's configuration is unknown on this machine",
) -> MemoryPlan:
    """Return the memory plan of one site.

    Args:
        site: with its node, block and ranks.
        shape: of the model; None: unknown on this machine.
        setup: types and length.
        batch: samples that the site's ranks share.
        section: the campaign's settings.
        unknown: why there is no shape.

    Raises:
        UserMistake: nothing fits; the message has changes that would.
    """
    machine = machine_of(site)
    sizes = micro_batches(batch, machine.ranks, section)
    choices = list(candidates(machine, sizes, section))
    if not choices:
        raise UserMistake(
            f"parallel: these settings leave no way of training on {plural(machine.ranks, 'rank')} at {site.name}",
            remedy="Set parallel.sharding and parallel.offload to auto",
        )
    if shape is None or not machine.device_bytes:
        why = unknown if shape is None else "the device's memory is unknown on this machine"
        cautious = choices[0] if machine.ranks == 1 or not machine.accelerator else _last_without_offload(choices)
        return MemoryPlan(site.name, machine, batch, cautious, None, f"not checked: {why}")
    found = first_fit(shape, setup, machine, choices)
    if found is None:
        raise _refusal(site, shape, setup, machine, choices)
    return MemoryPlan(site.name, machine, batch, *found)


def first_fit(
    shape: ModelShape, setup: TrainingSetup, machine: Machine, choices: Sequence[Choice]
) -> tuple[Choice, Need] | None:
    """Return the first way that fits, with the memory it needs."""
    for choice in choices:
        need = need_of(shape, setup, machine, choice)
        if fits(need, machine):
            return choice, need
    return None


def fits(need: Need, machine: Machine) -> bool:
    """Return True if a plan may fill that much of the device's and the host's memory."""
    host_fits = not machine.host_bytes or need.host <= HOST_ROOM * machine.host_bytes
    return need.device <= ROOM * machine.device_bytes and host_fits


def candidates(machine: Machine, sizes: Sequence[int], section: ParallelSection) -> Iterator[Choice]:
    """Yield all ways that a campaign allows, from fast to slow.

    Smaller micro-batches come before offloading: they split the same step into more passes and cost little.
    """
    for offloads in (False, True):
        for size in sizes:
            for sharding, checkpoint, offload in ORDER:
                choice = Choice(_for_ranks(sharding, machine), checkpoint, offload, size)
                if offload == offloads and _possible(choice, machine) and _wanted(choice, sharding, section):
                    yield choice


def _for_ranks(sharding: Sharding, machine: Machine) -> Sharding:
    return "none" if sharding == "ddp" and machine.ranks == 1 else sharding


def _possible(choice: Choice, machine: Machine) -> bool:
    if choice.offload:
        return machine.accelerator
    return machine.ranks > 1 or choice.sharding == "none"


def _wanted(choice: Choice, sharding: Sharding, section: ParallelSection) -> bool:
    return all(
        wanted in (AUTO, *values)
        for wanted, values in (
            (section.sharding, (choice.sharding, sharding)),
            (section.offload, (choice.offload,)),
            (section.checkpoint_activations, (choice.checkpoint,)),
        )
    )


def micro_batches(batch: int, ranks: int, section: ParallelSection) -> list[int]:
    """Return the numbers of samples of a rank in one pass, largest first: its share of a batch and the divisors of it.

    So all passes of a batch have the same size.
    """
    if section.micro_batch != AUTO:
        return [int(section.micro_batch)]
    share = math.ceil(batch / ranks)
    return [size for size in range(share, 0, -1) if share % size == 0]


def _last_without_offload(choices: Sequence[Choice]) -> Choice:
    return [c for c in choices if not c.offload][-1] if any(not c.offload for c in choices) else choices[0]


def _refusal(
    site: Site, shape: ModelShape, setup: TrainingSetup, machine: Machine, choices: Sequence[Choice]
) -> UserMistake:
    needs = [need_of(shape, setup, machine, choice) for choice in choices]
    least = min(needs, key=lambda need: need.device)
    what = "adapters" if shape.adapted else "all parameters"
    text = (
        f"site {site.name}: a model of {shape.parameters / 1e9:.3g} G parameters, {what} trained on "
        f"{plural(machine.ranks, 'rank')}, needs at least {bytes_text(least.device)} a rank, and "
        f"{bytes_text(ROOM * machine.device_bytes)} of {bytes_text(machine.device_bytes)} may be used"
    )
    if least.device <= ROOM * machine.device_bytes:
        text += f"; offloading and loading need {bytes_text(least.host)} of {bytes_text(machine.host_bytes)} a host"
    return UserMistake(text, remedy="It would fit with " + ", or ".join(remedies(site, shape, setup, machine, choices)))


def remedies(
    site: Site, shape: ModelShape, setup: TrainingSetup, machine: Machine, choices: Sequence[Choice]
) -> list[str]:
    """Return the changes that would make a plan fit, for people."""
    sizes = sorted({choice.micro_batch for choice in choices}, reverse=True)
    free = list(candidates(machine, sizes, ParallelSection()))
    single = list(candidates(machine, [1], ParallelSection()))
    found = []
    if first_fit(shape, setup, machine, free):
        found.append("parallel.sharding, offload and checkpoint_activations: auto")
    elif first_fit(shape, setup, machine, single):
        found.append("parallel.micro_batch: 1")
    nodes = _enough_nodes(shape, setup, machine, choices)
    if nodes:
        found.append(f"sites.{site.name}.nodes: {nodes}")
    if not shape.adapted and first_fit(with_adapter(shape), replace(setup, weight_bytes=2), machine, single):
        found.append("model.adapter (LoRA) with model.dtype: bfloat16")
    return found or ["larger devices, or a smaller model"]


def _enough_nodes(shape: ModelShape, setup: TrainingSetup, machine: Machine, choices: Sequence[Choice]) -> int | None:
    """Return the site's nodes times the smallest power of two that suffices, or None."""
    nodes = machine.nodes * 2
    while nodes <= MOST_NODES:
        if first_fit(shape, setup, replace(machine, nodes=nodes), [c for c in choices if c.sharding in SHARDED]):
            return nodes
        nodes *= 2
    return None


def with_adapter(shape: ModelShape) -> ModelShape:
    """Return roughly the shape of a model with LoRA of rank 16 on all linear layers."""
    inputs = 6 * shape.width + shape.inner if shape.gated else 5 * shape.width + shape.inner
    outputs = 2 * shape.width + 2 * shape.key_width + 2 * shape.inner
    trained = 16 * shape.layers * (inputs + outputs)
    lora = AdapterSpec(method="fedit", rank=16, alpha=16.0, dropout=0.0, targets="all-linear", last_layers=None)
    return replace(shape, trained=trained, adapted=True, adapter=json.dumps(lora))
