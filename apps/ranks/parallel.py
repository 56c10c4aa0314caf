"""How a training is spread over the ranks of a site: DDP, FSDP2, offload to the host, activation checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from apps.base.errors import UserMistake
from apps.ranks.process_group import ProcessGroup

if TYPE_CHECKING:
    import torch

    from apps.models.model import Model

SHARDED = ("shard_grad_op", "full_shard")


class Parallel(TypedDict):
    """In plain values. One rank that is not sharded trains in the warm worker; others are started for each task."""

    nodes: int
    ranks_per_node: int
    sharding: str  # none, ddp, shard_grad_op or full_shard
    offload: bool  # sharded parameters, gradients and moments lie in the host's memory
    checkpoint_activations: bool  # compute them twice instead of keeping them
    micro_batch: int  # samples that a rank computes at once
    backend: str  # gloo, nccl or xccl
    launch: list[str]  # command that starts the ranks; empty: torch's own launcher, for one node
    interface: str  # network interface that the ranks meet on; empty: any


@dataclass(frozen=True)
class ParallelNetwork:
    """A network that is ready for its ranks.

    Attributes:
        forward: calls it.
        hold_back: a context in which the ranks do not exchange gradients yet.
        autocast: whether mixed precision is torch's autocast; sharded networks cast by themselves.
    """

    forward: Callable[..., Any]
    hold_back: Callable[[], AbstractContextManager[Any]]
    autocast: bool


def ranks_of(parallel: Parallel) -> int:
    return parallel["nodes"] * parallel["ranks_per_node"]


def is_sharded_over_ranks(parallel: Parallel) -> bool:
    return parallel["sharding"] in SHARDED


def fits_in_worker(parallel: Parallel) -> bool:
    """Whether the warm worker trains by itself.

    Raises:
        UserMistake: the settings do not go together.
    """
    ranks = ranks_of(parallel)
    if ranks > 1 and parallel["sharding"] == "none":
        raise UserMistake(f"{ranks} ranks need sharding: ddp, shard_grad_op or full_shard")
    if parallel["offload"] and not is_sharded_over_ranks(parallel):
        raise UserMistake(f"offload does not go with sharding {parallel['sharding']!r}, only with {', '.join(SHARDED)}")
    return ranks == 1 and not is_sharded_over_ranks(parallel)


def load_device(parallel: Parallel, team: ProcessGroup) -> str:
    """Where the whole model is loaded; a model that is to be sharded may be too large for one device."""
    return "cpu" if is_sharded_over_ranks(parallel) else team.device


def parallelize(model: Model, parallel: Parallel, precision: str, team: ProcessGroup) -> ParallelNetwork:
    """Make a loaded model ready; a sharded model's tensors become DTensors, and ``model.state`` names these.

    Args:
        model: whole, on ``load_device``.
        precision: "no" or "bf16".
    """
    network: Any = model.network
    base = network.get_base_model() if model.spec["adapter"] else network
    if parallel["checkpoint_activations"]:
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.activation_checkpointing_disable()
    if is_sharded_over_ranks(parallel):
        _shard(model, base, parallel, precision, team)
        return ParallelNetwork(model.network, nullcontext, autocast=False)
    if team.size == 1:
        return ParallelNetwork(model.network, nullcontext, autocast=precision == "bf16")
    return _replicated(model, precision, team)


def _replicated(model: Model, precision: str, team: ProcessGroup) -> ParallelNetwork:
    import torch

    devices = None if team.device == "cpu" else [torch.device(team.device)]
    network: Any = torch.nn.parallel.DistributedDataParallel(model.network, device_ids=devices, broadcast_buffers=False)
    return ParallelNetwork(network, network.no_sync, autocast=precision == "bf16")


def _shard(model: Model, base: Any, parallel: Parallel, precision: str, team: ProcessGroup) -> None:
    """FSDP2: each decoder layer is a unit, the rest is another.

    ``shard_grad_op`` keeps a layer's gathered parameters from forward to backward, ``full_shard`` gathers them twice.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    kind = torch.device(team.device).type
    options: dict[str, Any] = {
        "mesh": init_device_mesh(kind, (team.size,)),
        "reshard_after_forward": parallel["sharding"] == "full_shard",
        "offload_policy": CPUOffloadPolicy(pin_memory=kind != "cpu") if parallel["offload"] else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        if precision == "bf16"
        else MixedPrecisionPolicy(),
    }
    names = _names_inside(model)
    for unit in _units(base):
        fully_shard(unit, **options)
    fully_shard(model.network, **options)
    model.state |= {name: model.network.get_parameter(inside) for name, inside in names.items()}


def _names_inside(model: Model) -> dict[str, str]:
    """Artifact name -> name in the network, of parameters."""
    inside = {id(parameter): name for name, parameter in model.network.named_parameters()}
    return {name: inside[id(tensor)] for name, tensor in model.state.items() if id(tensor) in inside}


def _units(base: Any) -> list[torch.nn.Module]:
    """The decoder layers."""
    kinds = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in kinds]
