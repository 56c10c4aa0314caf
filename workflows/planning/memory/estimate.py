"""Formulas for the memory that a training step needs on a device and on the host.

States follow from what torch keeps: weights, gradients of the same type, AdamW's two moments, all sharded by FSDP2
where it shards. ZeRO-1 and -2 (Rajbhandari et al., arXiv 1910.02054) have no exact counterpart: ``shard_grad_op`` moves
as many bytes a step as they do (weights once, gradients once) and keeps gradients sharded as ZeRO-2 does, but shards
the float32 weights too and holds all of them gathered in the compute type from the forward to the backward pass.

What the layers keep for the backward pass is measured on the network itself, without memory (``measure``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from workflows.planning.memory.measure import Computes, kept_by_layers
from workflows.planning.memory.model import ModelShape

Sharding = Literal["none", "ddp", "shard_grad_op", "full_shard"]
SHARDED = ("shard_grad_op", "full_shard")
FLOAT32, BFLOAT16 = 4, 2
SLACK = 1.08  # the allocator's fragments and short-lived buffers
CONTEXT_BYTES = {
    True: 2e9,
    False: 0.7e9,
}  # an accelerator's context and communicators; on CPUs Python and its libraries


@dataclass(frozen=True)
class TrainingSetup:
    """The part of the training settings that memory depends on.

    Attributes:
        weight_bytes: bytes of a weight of the base model.
        mixed: True if a float32 model computes in bfloat16.
        length: number of tokens of the longest sample.
    """

    weight_bytes: int
    mixed: bool
    length: int

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the compute type."""
        return BFLOAT16 if self.mixed else self.weight_bytes


@dataclass(frozen=True)
class Machine:
    """Hardware of a site: ``device_bytes`` of one rank, ``host_bytes`` of one node, 0 if unknown."""

    nodes: int
    ranks_per_node: int
    device_bytes: int
    host_bytes: int
    accelerator: bool

    @property
    def ranks(self) -> int:
        """Number of ranks over all nodes."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Choice:
    """One way to spread the training; ``micro_batch`` is the number of samples of a rank in one pass."""

    sharding: Sharding
    checkpoint: bool
    offload: bool
    micro_batch: int


@dataclass(frozen=True)
class Need:
    """Bytes needed on one device, and on one host for all its ranks.

    Attributes:
        weights, gradients, optimizer: states that stay between steps.
        gathered: weights in the compute type and whole gradients while they are in use; copies that autocast makes.
        activations: values kept for the backward pass, with the logits.
        overhead: context, communication buffers, fragments.
        host: offloaded states, and one copy of the weights for each rank while it loads them.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    overhead: float
    host: float

    @property
    def device(self) -> float:
        """Sum of the bytes on one device."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")


def need_of(shape: ModelShape, setup: TrainingSetup, machine: Machine, choice: Choice) -> Need:
    """Return the memory needed for one way to spread a training."""
    share = machine.ranks if choice.sharding in SHARDED else 1
    trained_bytes = FLOAT32 if shape.adapted else setup.weight_bytes  # peft keeps adapters in float32
    base = 0 if not shape.adapted else setup.weight_bytes * shape.parameters / share
    weights = base + trained_bytes * shape.trained / share
    gradients = trained_bytes * shape.trained / share
    optimizer = 2 * trained_bytes * shape.trained / share
    states = 0.0 if choice.offload else weights + gradients + optimizer
    gathered = in_flight(shape, setup, choice.sharding, trained_bytes)
    activations = activation_bytes(shape, setup, choice)
    # AdamW's update needs one more number per parameter, after the memory of the backward pass is free
    at_update = 0.0 if choice.offload else trained_bytes * shape.trained / share
    short = max(0.0, at_update - gathered - activations)
    offloaded = machine.ranks_per_node * (weights + gradients + optimizer) if choice.offload else 0.0
    loading = machine.ranks_per_node * setup.weight_bytes * shape.parameters if machine.accelerator else 0.0
    kept = 0.0 if choice.offload else 1.0
    return Need(
        weights=kept * weights,
        gradients=kept * gradients,
        optimizer=kept * optimizer,
        gathered=gathered + short,
        activations=activations,
        host=offloaded + loading,
        overhead=(SLACK - 1) * (states + gathered + activations) + CONTEXT_BYTES[machine.accelerator],
    )


def in_flight(shape: ModelShape, setup: TrainingSetup, sharding: Sharding, trained_bytes: int) -> float:
    """Return the bytes beside states and activations while a step runs.

    ``ddp`` reduces gradients in buckets of their size. Under autocast every weight has a copy in the compute type.
    FSDP2 gathers the next layer while one computes, through a buffer of a layer's size. Parameters outside the layers
    stay gathered; their gradients are computed first and reduced last. Of the layers' whole gradients, with the
    float32 input of their reduction, those of one layer exist at a time.
    """
    trained_share = shape.trained / shape.parameters
    if sharding in SHARDED:
        whole = shape.parameters if sharding == "shard_grad_op" else shape.outside + 2 * shape.layer
        gradients = setup.compute_bytes * shape.outside + (setup.compute_bytes + FLOAT32) * shape.layer
        return setup.compute_bytes * (whole + shape.layer) + gradients * trained_share
    casts = setup.compute_bytes * shape.parameters if setup.mixed else 0
    return casts + (trained_bytes * shape.trained if sharding == "ddp" else 0)


def activation_bytes(shape: ModelShape, setup: TrainingSetup, choice: Choice) -> float:
    """Return the bytes that the forward pass keeps for the backward pass, with samples of the full length."""
    tokens = choice.micro_batch * setup.length
    autocast = setup.mixed and choice.sharding not in SHARDED
    kept = kept_by_layers(shape.config, shape.adapter, computes_of(setup, autocast), setup.length)
    residual = (FLOAT32 if autocast else setup.compute_bytes) * shape.width
    layers = residual * shape.layers + max(kept) if choice.checkpoint else sum(kept)
    # logits in the compute type, their logarithms in float32 and the gradients of these
    logits = (2 * FLOAT32 + setup.compute_bytes) * shape.vocabulary
    return tokens * (layers + logits)


def computes_of(setup: TrainingSetup, autocast: bool) -> Computes:
    """Return the type in which a training computes."""
    return "autocast" if autocast else "float32" if setup.compute_bytes == FLOAT32 else "bfloat16"
