"""Distribution of a training over the ranks of a site: DDP, FSDP2, offload to the host, activation checkpoints."""

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
    """Layout of the ranks in plain values.

    One rank that is not sharded trains in the warm worker; others are processes of their own, which stay between jobs.
    """

    nodes: int
    ranks_per_node: int
    sharding: str  # none, ddp, shard_grad_op or full_shard
    offload: bool  # keep sharded parameters, gradients and moments in the host's memory
    checkpoint_activations: bool  # compute activations twice instead of keeping them
    micro_batch: int  # samples in one forward pass of a rank
    backend: str  # gloo, nccl or xccl
    launch: list[str]  # command that starts the ranks; empty: torch's own launcher, for one node
    interface: str  # network interface between the ranks; empty: any


@dataclass(frozen=True)
class ParallelNetwork:
    """A network that is ready for its ranks.

    Attributes:
        forward: the function that calls it.
        no_sync: a context in which the ranks do not exchange gradients.
        autocast: True if mixed precision needs torch's autocast; sharded networks cast by themselves.
    """

    forward: Callable[..., Any]
    no_sync: Callable[[], AbstractContextManager[Any]]
    autocast: bool


def ranks_of(parallel: Parallel) -> int:
    """Return the number of ranks over all nodes."""
    return parallel["nodes"] * parallel["ranks_per_node"]


def is_sharded_over_ranks(parallel: Parallel) -> bool:
    """Return True if each rank holds a part of the parameters."""
    return parallel["sharding"] in SHARDED


def fits_in_worker(parallel: Parallel) -> bool:
    """Return True if the warm worker trains in its own process.

    Raises:
        UserMistake: the settings exclude each other.
    """
    ranks = ranks_of(parallel)
    if ranks > 1 and parallel["sharding"] == "none":
        raise UserMistake(f"{ranks} ranks need sharding: ddp, shard_grad_op or full_shard")
    if parallel["offload"] and not is_sharded_over_ranks(parallel):
        raise UserMistake(f"offload needs sharding {' or '.join(SHARDED)}, not {parallel['sharding']!r}")
    return ranks == 1 and not is_sharded_over_ranks(parallel)


def load_device(parallel: Parallel, group: ProcessGroup) -> str:
    """Return the device to load the whole model on; a model to be sharded may be too large for one accelerator."""
    return "cpu" if is_sharded_over_ranks(parallel) else group.device


def parallelize(model: Model, parallel: Parallel, precision: str, group: ProcessGroup) -> ParallelNetwork:
    """Prepare a loaded model for its ranks; a sharded model's tensors become DTensors, also in ``model.state``.

    A model that has been prepared already stays as it is.

    Args:
        model: whole, on ``load_device``.
        parallel: layout of the ranks.
        precision: "no" or "bf16".
        group: the ranks.
    """
    network: Any = model.network
    base = network.get_base_model() if model.spec["adapter"] else network
    if parallel["checkpoint_activations"]:
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.activation_checkpointing_disable()
    if group.size == 1 and not is_sharded_over_ranks(parallel):
        return ParallelNetwork(model.network, nullcontext, autocast=precision == "bf16")
    key = f"{parallel['sharding']}, offload {parallel['offload']}, {precision}, {group.size} ranks"
    if key not in model.parallel:
        assert not model.parallel, "a process prepares its model for one kind of ranks"
        model.parallel[key] = _over_ranks(model, base, parallel, precision, group)
    return model.parallel[key]


def _over_ranks(model: Model, base: Any, parallel: Parallel, precision: str, group: ProcessGroup) -> ParallelNetwork:
    if is_sharded_over_ranks(parallel):
        _shard(model, base, parallel, precision, group)
        return ParallelNetwork(model.network, nullcontext, autocast=False)
    return _replicated(model, precision, group)


def _replicated(model: Model, precision: str, group: ProcessGroup) -> ParallelNetwork:
    """Replicate a network with DDP.

    ``find_unused_parameters`` keeps the first layout of its buckets. Another one after the first step would add up the
    gradients of three ranks and more in another order, and so give a resumed training, or one on ranks that were kept,
    other bits.
    """
    import torch

    devices = None if group.device == "cpu" else [torch.device(group.device)]
    network: Any = torch.nn.parallel.DistributedDataParallel(
        model.network, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True
    )
    return ParallelNetwork(network, network.no_sync, autocast=precision == "bf16")


def _shard(model: Model, base: Any, parallel: Parallel, precision: str, group: ProcessGroup) -> None:
    """Shard a network with FSDP2: each decoder layer is a unit, the rest is another.

    ``shard_grad_op`` keeps a layer's gathered parameters from forward to backward, ``full_shard`` gathers them twice.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    kind = torch.device(group.device).type
    options: dict[str, Any] = {
        "mesh": init_device_mesh(kind, (group.size,)),
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
    """Return artifact name -> name in the network, of all parameters."""
    inside = {id(parameter): name for name, parameter in model.network.named_parameters()}
    return {name: inside[id(tensor)] for name, tensor in model.state.items() if id(tensor) in inside}


def _units(base: Any) -> list[torch.nn.Module]:
    """Return the decoder layers."""
    kinds = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in kinds]
