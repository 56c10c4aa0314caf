"""Types of numbers in a campaign: which combinations are refused, and their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.base.errors import UserMistake

if TYPE_CHECKING:
    from workflows.planning.campaign import Campaign


def check_types(campaign: Campaign) -> None:
    """Refuse types of numbers with which a campaign would not train what it says.

    Raises:
        UserMistake: all parameters would be trained in bfloat16, or adapters would travel in it.
    """
    model = campaign.model
    if model.adapter is None and model.dtype == "bfloat16":
        raise UserMistake(
            "model.dtype: bfloat16 is for a frozen base: where all parameters are trained, most steps are smaller than"
            " the last place of a bfloat16 weight and are lost",
            remedy="Use 'auto': float32 weights, computed in bfloat16; model.traffic: bfloat16 halves what travels",
        )
    if model.adapter is not None and model.traffic == "bfloat16":
        raise UserMistake(
            "model.traffic: bfloat16 is for campaigns that train all parameters; an adapter is small and travels in"
            " float32",
            remedy="Leave model.traffic out",
        )


def types_text(campaign: Campaign) -> str:
    """Return the types of weights, of computation and of what travels."""
    model, mixed = campaign.model, campaign.training.precision == "bf16"
    if model.adapter is not None and model.dtype == "bfloat16":
        return "bfloat16 base, float32 adapters"
    parts = ["float32 weights, bf16 compute"] if mixed else [model.dtype]
    return ", ".join(parts + (["bfloat16 traffic"] if model.traffic == "bfloat16" else []))
