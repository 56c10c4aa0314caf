"""Where LoRA goes in a network: the modules that a campaign's targets meet, for every family of models."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from apps.base.errors import UserMistake

if TYPE_CHECKING:
    from torch.nn import Module

KEY = "model.adapter"
ALL_LINEAR = "all-linear"
ROUTERS = ("gate", "router", "shared_expert_gate")  # they choose experts; adapting them is not what all-linear means
# peft.tuners.tuners_utils has the kinds and out_proj, conv1d; dt_proj and x_proj are read as plain matrices by the
# scan (transformers' MambaMixer), so that an adapter on them would have no effect.
STATE_SPACE_KINDS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
READ_AS_MATRICES = ("out_proj", "conv1d", "dt_proj", "x_proj")
TRAIN_ALL = "Leave out model.adapter to train all parameters"
MERGING = ("fedex", "flora")  # server rules that add a product to the base weight of an adapted module


class AdapterSpec(TypedDict):
    """LoRA settings in plain values; ``method`` is one of ``apps.artifacts.lora.METHODS``."""

    method: str
    rank: int
    alpha: float
    dropout: float
    targets: list[str] | str
    last_layers: int | None


@dataclass(frozen=True)
class AdaptedModules:
    """Modules of a network that LoRA adapts, by kind.

    Attributes:
        kinds: last part of the modules' names -> number of modules.
        trained: number of trained parameters.
        notes: remarks for people on what is left out.
    """

    kinds: dict[str, int]
    trained: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        total, kinds = sum(self.kinds.values()), len(self.kinds)
        names = ", ".join(self.kinds)
        return (
            f"{total} module{'s' * (total != 1)} of {kinds} kind{'s' * (kinds != 1)} ({names}),"
            f" {self.trained:,} trained parameters"
        )


def with_adapter(network: Any, adapter: AdapterSpec) -> Any:
    """Return a network with LoRA on the modules that the settings name.

    Args:
        network: of transformers, on any device, the meta device too.
        adapter: the settings.

    Raises:
        UserMistake: targets meet nothing, the rank is larger than that of a module, there are fewer layers, or the
            server's rule cannot merge into what the targets meet.
    """
    from peft import LoraConfig, get_peft_model

    first, layers = _first_layer(network, adapter), layer_count(network)
    targets, left_out = _targets(network, adapter)
    alpha: Any = adapter["alpha"]  # peft's annotation says int, its arithmetic takes any number
    config = LoraConfig(
        r=adapter["rank"],
        lora_alpha=alpha,
        lora_dropout=adapter["dropout"],
        task_type="CAUSAL_LM",
        target_modules=targets,
        exclude_modules=left_out or None,
        layers_to_transform=list(range(first, layers)) if first else None,
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # of settings that peft then corrects itself
            adapted = get_peft_model(network, config)
    except ValueError as error:
        raise UserMistake(f"{KEY}.targets: peft refuses them: {' '.join(str(error).split())}") from None
    _require_met(adapted, adapter)
    _require_lower_rank(adapted, adapter)
    return adapted


def layer_count(network: Any) -> int:
    """Return the number of decoder layers; families name it differently, and some nest it."""
    return int(network.config.get_text_config(decoder=True).num_hidden_layers)


def _first_layer(network: Any, adapter: AdapterSpec) -> int:
    """Return the index of the first adapted layer.

    Raises:
        UserMistake: more layers than there are.
    """
    if not adapter["last_layers"]:
        return 0
    layers = layer_count(network)
    if adapter["last_layers"] > layers:
        raise UserMistake(f"{KEY}.last_layers: {adapter['last_layers']}, but the model has {layers} layers")
    return layers - adapter["last_layers"]


def _targets(network: Any, adapter: AdapterSpec) -> tuple[list[str], list[str]]:
    """Return the last parts of the names to adapt, and whole names that are left out though they end like these."""
    wanted = adapter["targets"]
    if isinstance(wanted, list):
        _require_known(network, wanted)
        return wanted, []
    chosen = set(_all_linear(network))
    leaves = {_leaf(name) for name in chosen} - _turned_into_parameters(network, {_leaf(name) for name in chosen})
    if not leaves:
        raise UserMistake(f"{KEY}.targets: this model has no linear module that LoRA can adapt", remedy=TRAIN_ALL)
    others = [name for name, _ in linear_modules(network) if name not in chosen and _leaf(name) in leaves]
    return sorted(leaves), others


def linear_modules(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield all linear layers with their names."""
    import torch
    from transformers.pytorch_utils import Conv1D

    yield from ((name, m) for name, m in network.named_modules() if isinstance(m, torch.nn.Linear | Conv1D))


def _all_linear(network: Any) -> Iterator[str]:
    """Yield the linear layers that ``all-linear`` means: not the output layer, not the routers of experts."""
    head, config = network.get_output_embeddings(), network.config.get_text_config(decoder=True)
    experts = _experts(config)
    for name, module in linear_modules(network):
        is_router = bool(experts) and (_leaf(name) in ROUTERS or min(module.weight.shape) in (1, experts))
        as_matrix = config.model_type in STATE_SPACE_KINDS and _leaf(name) in READ_AS_MATRICES
        if module is not head and not is_router and not as_matrix:
            yield name


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _experts(config: Any) -> int:
    """Return the number of experts of a layer; 0 for a model without."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return next((int(n) for name in names if isinstance(n := getattr(config, name, None), int) and n > 1), 0)


def _turned_into_parameters(network: Any, targets: Iterable[str]) -> set[str]:
    """Return the targets for which peft adapts parameters that hold all experts of a layer instead of modules.

    Since transformers 5 some families keep their experts so, and peft translates the modules' older names.

    Raises:
        UserMistake: peft cannot translate one without another.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older one, which translates nothing
        return set()
    probe, wanted = LoraConfig(target_modules=list(targets)), set(targets)
    try:
        convert_peft_config_for_transformers(probe, network, None)
    except ValueError as error:
        raise UserMistake(f"{KEY}.targets: {' '.join(str(error).split())}") from None
    return wanted - set(probe.target_modules or ())


def _require_known(network: Any, targets: list[str]) -> None:
    """Raise UserMistake for a target that is the end of no module's name, or of one that cannot be adapted."""
    modules, parameters = dict(network.named_modules()), _turned_into_parameters(network, targets)
    as_matrix = READ_AS_MATRICES if network.config.model_type in STATE_SPACE_KINDS else ()
    for target in targets:
        if _leaf(target) in as_matrix:
            raise UserMistake(
                f"{KEY}.targets: LoRA on {target} would have no effect: this model reads its weight alone"
            )
        met = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not met and target not in parameters:
            raise UserMistake(f"{KEY}.targets: {target} meets no module of this model", remedy=_known_text(network))
        unfit = [name for name in met if not _can_be_adapted(name, modules[name])]
        if unfit and target not in parameters:
            kind = type(modules[unfit[0]]).__name__
            what = f"{KEY}.targets: {target} meets a {kind} ({unfit[0]}), which LoRA cannot adapt"
            raise UserMistake(what, remedy=_known_text(network))


def _can_be_adapted(name: str, module: Module) -> bool:
    """Return True for a module whose result is one product; a router's may be a tuple (Llama 4)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    plain = type(module) in (torch.nn.Linear, Conv1D, torch.nn.Embedding)
    return plain or (isinstance(module, torch.nn.Linear) and _leaf(name) not in ROUTERS)


def _known_text(network: Any) -> str:
    found = Counter(_leaf(name) for name, _ in linear_modules(network))
    return f"Its linear modules are {', '.join(found)}; {KEY}.targets: {ALL_LINEAR} takes those that it is made for"


def _require_lower_rank(adapted: Any, adapter: AdapterSpec) -> None:
    """Raise UserMistake if a product of that rank would be no smaller than the matrix that it changes."""
    rank = adapter["rank"]
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "in_features"):
            least = min(module.in_features, module.out_features)
            if rank > least:
                short = name.removeprefix("base_model.model.")
                raise UserMistake(
                    f"{KEY}.rank: {rank:,} is more than the rank of {short}, {least:,}",
                    remedy=f"Ranks of 4 to 64 are usual. {TRAIN_ALL}",
                )


def adapted_modules(adapted: Any) -> AdaptedModules:
    """Return what LoRA adapts in a network that ``with_adapter`` has made."""
    names = [*adapted.targeted_module_names, *_adapted_parameters(adapted)]
    trained = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    return AdaptedModules(dict(Counter(map(_leaf, names))), trained, tuple(_left_out(adapted)))


def _adapted_parameters(adapted: Any) -> list[str]:
    return list(getattr(adapted, "targeted_parameter_names", []))


def _left_out(adapted: Any) -> Iterator[str]:
    """Yield remarks on what LoRA does not adapt though a reader could expect it."""
    base = adapted.get_base_model()
    fused = [name for name, p in base.named_parameters() if p.ndim == 3 and ".experts." in name]
    if fused and not _adapted_parameters(adapted):
        yield f"the experts ({len(fused)} parameters, each with all experts of a layer) stay as they are"
    if base.config.get_text_config(decoder=True).model_type in STATE_SPACE_KINDS:
        yield f"{', '.join(READ_AS_MATRICES)} of state-space layers stay as they are: LoRA would have no effect there"


def _require_met(adapted: Any, adapter: AdapterSpec) -> None:
    """Raise UserMistake if the rest of the settings does not go with the modules that the targets meet."""
    parameters, targets, last = _adapted_parameters(adapted), adapter["targets"], adapter["last_layers"]
    if parameters and (adapter["method"] in MERGING or last):
        key, value = ("method", adapter["method"]) if adapter["method"] in MERGING else ("last_layers", last)
        raise UserMistake(
            f"{KEY}.{key}: {value} works on modules, and these targets also meet parameters that each hold all experts"
            f" of a layer, such as {parameters[0]}",
            remedy=f"Use {KEY}.targets: {ALL_LINEAR}, which leaves the experts as they are, or method fedit or svd for"
            " all layers",
        )
    names = adapted.targeted_module_names
    for target in targets if isinstance(targets, list) and not parameters else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserMistake(f"{KEY}.targets: {target} meets no module of the last {last} layer{'s' * (last != 1)}")
