"""What a campaign may fix of how training is spread; the memory plan settles what it leaves at ``auto``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

AUTO = "auto"


class ParallelSection(BaseModel):
    """``parallel`` of a campaign; ``micro_batch`` is samples of one rank in one pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sharding: Literal["auto", "none", "ddp", "shard_grad_op", "full_shard"] = "auto"
    offload: bool | Literal["auto"] = "auto"
    checkpoint_activations: bool | Literal["auto"] = "auto"
    micro_batch: PositiveInt | Literal["auto"] = "auto"
