"""What the reference paper's own settings hold on a device: DeepSpeed's ZeRO, to compare our plans with.

Llama-2-7B in bfloat16 with float32 master weights and moments: 2 + 2 + 12 bytes a parameter (arXiv 2603.19544 and its
released configuration; ZeRO: arXiv 1910.02054). The release has two settings: ZeRO-1 for devices of 64 and 80 GB, and
ZeRO-3 with the optimiser on the host and up to 3e9 parameters gathered at a time for those of 40 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflows.planning.memory.estimate import CONTEXT_BYTES, SLACK, Choice, Machine, TrainingSetup, activation_bytes
from workflows.planning.memory.model import ModelShape
from workflows.planning.memory.plan import ROOM

LIVE_PARAMETERS = 3e9  # max_live_parameters of the release
BUCKETS = {1: 2 * 5e7, 3: 2 * 5e8}  # parameters in the buckets of reduction and of gathering or prefetching
SETTINGS = ((1, False, False), (1, False, True), (3, False, False), (3, False, True), (3, True, False), (3, True, True))


@dataclass(frozen=True)
class Zero:
    """One of DeepSpeed's stages, with the optimiser on the host or not, with activations computed again or not."""

    stage: int
    offload: bool
    checkpoint: bool
    nbytes: float


def zero_plan(shape: ModelShape, machine: Machine, length: int, micro_batch: int) -> Zero | None:
    """Return the fastest of the paper's settings that fits a device; None if none does."""
    for stage, offload, checkpoint in SETTINGS:
        nbytes = zero_bytes(shape, machine, length, micro_batch, Zero(stage, offload, checkpoint, 0.0))
        if nbytes <= ROOM * machine.device_bytes:
            return Zero(stage, offload, checkpoint, nbytes)
    return None


def zero_bytes(shape: ModelShape, machine: Machine, length: int, micro_batch: int, zero: Zero) -> float:
    """Bytes on a device, with the same slack and overhead as our own plans."""
    share = 1 if zero.stage == 1 else machine.ranks
    optimizer = 0.0 if zero.offload else 12 * shape.trained / machine.ranks
    states = 4 * shape.parameters / share + optimizer
    live = 2 * min(LIVE_PARAMETERS, shape.parameters) if zero.stage == 3 else 0.0
    setup = TrainingSetup(weight_bytes=2, mixed=False, length=length)
    kept = activation_bytes(shape, setup, Choice("full_shard", zero.checkpoint, zero.offload, micro_batch))
    in_buckets = 2 * BUCKETS[zero.stage]
    return SLACK * (states + live + in_buckets + kept) + CONTEXT_BYTES[True]
