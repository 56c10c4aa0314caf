"""The settings of one local training, in plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    pass


class TrainingSpec(TypedDict):
    """How a site trains in one round, in plain values."""

    steps: int
    batch_size: int
    accumulate: int  # batches per step
    learning_rate: float
    schedule: str  # constant, linear or cosine
    final_factor: float  # of the learning rate at the end of a decay
    warmup_steps: int  # of the campaign, not of the round
    start_step: int  # steps of the campaign before this round
    total_steps: int  # steps of the whole campaign
    weight_decay: float
    clip_norm: float | None
    proximal_mu: float
    precision: str  # "no" or "bf16": mixed precision
    device: str
    keep_optimizer: bool
    checkpoint_s: float  # between two saves; no part of the work's identity
    on_walltime: str  # "finish" in the next block, or "return" what is done; no part of the work's identity
    until: float | None  # UNIX time: the step during which it passes is the last; no part of the work's identity
