"""Settings of one local training, in plain values."""

from __future__ import annotations

from typing import TypedDict


class TrainingSpec(TypedDict):
    """Training settings of a site for one round, in plain values."""

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
    checkpoint_s: float  # between two checkpoints; no part of the task's identity
    on_walltime: str  # "finish" in the next block, or "return" the steps done; no part of the task's identity
    until: float | None  # UNIX time: the step during which it passes is the last; no part of the task's identity
