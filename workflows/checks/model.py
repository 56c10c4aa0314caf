"""Checks of the models that a campaign names: their files, tokenizer, weights, and the modules that LoRA adapts.

Nothing is read but small files and the headers of weights; networks are built on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.models.adapter import adapted_modules, with_adapter
from apps.models.folder import require_usable
from apps.models.loading import load_network, load_tokenizer, random_network, unused_text, vocabulary_fault
from apps.models.model import ModelSpec, quiet
from apps.models.sources import PACKAGED, TINY, is_converted, model_folder
from site_configs.library.site import Site
from workflows.checks.causality import is_causal
from workflows.checks.hub import cached_folder, hub_fault, is_path, is_whole
from workflows.planning.memory.model import config_of_spec
from workflows.planning.plan import Plan, model_spec

KEY = "model.source"
SAFE_RANK = 16  # fits every module of the models that come with the project
Lines = list[tuple[str, str]]


def require_models(plan: Plan, source: Path) -> None:
    """Check the models before a run starts; those that come with the project are known to work.

    Args:
        plan: the checked campaign.
        source: its file, for errors.

    Raises:
        UserMistake: a model that cannot be used.
    """
    if not is_proven(plan):
        model_remarks(plan, source)


def model_remarks(plan: Plan, source: Path) -> Lines:
    """Check every model that this machine can see, and return remarks on them as pairs of key and text.

    Args:
        plan: the checked campaign.
        source: its file, for errors.

    Raises:
        UserMistake: a model that cannot be used; names the file and the campaign's key.
    """
    if is_proven(plan) and not plan.campaign.model.adapter:
        return []  # nothing to be seen, and the libraries need seconds to load
    import torch

    quiet()
    torch.set_num_threads(1)  # the networks are small or empty, and other threads of a login node are others'
    try:
        return _model_remarks(plan)
    except UserMistake as error:
        raise UserMistake(f"{source}: {error.what}", remedy=error.remedy) from None


def _model_remarks(plan: Plan) -> Lines:
    spec = model_spec(plan.campaign)
    lines = [("model", text) for text in check_model(spec, plan, KEY, needed_here(plan))]
    for name, site in plan.sites.items():
        source = plan.campaign.sites[name].model
        if source and not _is_visible(site, source):
            lines.append((f"model of {name}", f"{source}: not checked here, it lies at the site"))
        elif source:
            own = ModelSpec(**{**spec, "source": source})
            lines += [(f"model of {name}", text) for text in check_model(own, plan, f"sites.{name}.model", True)]
    return lines


def needed_here(plan: Plan) -> bool:
    """Return True if a site on this machine loads the campaign's model."""
    return any(site.route == "local" and not plan.campaign.sites[n].model for n, site in plan.sites.items())


def _is_visible(site: Site, source: str) -> bool:
    """Return True if a path at a site can be judged from here."""
    return site.route == "local" or (site.route == "batch" and Path(source).expanduser().exists())


def is_proven(plan: Plan) -> bool:
    """Return True for a model that comes with the project, in a form that is known to work without looking."""
    model, adapter = plan.campaign.model, plan.campaign.model.adapter
    own = any(entry.model for entry in plan.campaign.sites.values())
    plain = adapter is None or (adapter.targets == "all-linear" and adapter.rank <= SAFE_RANK)
    return (model.source == TINY or model.source in PACKAGED) and plain and not own


def missing_model(plan: Plan) -> str | None:
    """Return why the driver could not get the campaign's model, or None; sites that are elsewhere have their own."""
    source, places = plan.campaign.model.source, (plan.server_at, plan.evaluation_at)
    if not (needed_here(plan) or any(place.here for place in places)):
        return None
    if source == TINY or source in PACKAGED or is_path(source) or _whole_in_cache(source):
        return None
    fault = hub_fault(source)
    return f"{KEY}: {source} {fault.what}. {fault.remedy}" if fault else None


def _whole_in_cache(name: str) -> bool:
    folder = cached_folder(name)
    return folder is not None and is_whole(folder)


def check_model(spec: ModelSpec, plan: Plan, key: str, needed: bool) -> Iterator[str]:
    """Check one model and yield remarks.

    Args:
        spec: the model.
        plan: with the campaign's settings of data and adapter.
        key: of the model's source, for errors.
        needed: True if this machine loads it; else only what is here is checked.

    Raises:
        UserMistake: it cannot be used.
    """
    folder = _folder_here(spec["source"], key, needed)
    if folder:
        require_usable(spec["source"], folder, key)
        network, report = _empty_network(folder, key)
        yield from filter(None, [unused_text(report)])
        yield from _tokenizer_remarks(folder, network, key)
        _require_causal(spec["source"], network.config, key)
    else:
        config = config_of_spec(spec)
        if config is None:
            yield f"{spec['source']}: not checked here, it is not on this machine"
            return
        network = _network_of(config)
    yield from _position_remarks(network, plan.campaign.data.max_tokens)
    if spec["adapter"]:
        adapted = adapted_modules(with_adapter(network, spec["adapter"]))
        yield from (f"LoRA: {adapted}", *(f"LoRA: {note}" for note in adapted.notes))


def _folder_here(source: str, key: str, needed: bool) -> Path | None:
    """Return the folder of a model on this machine, or None if it has none yet.

    Raises:
        UserMistake: it is needed and cannot be had.
    """
    if source == TINY or not is_converted(source):
        return None
    if source in PACKAGED or is_path(source):
        return Path(model_folder(source))
    folder = cached_folder(source)
    if folder and is_whole(folder):
        return folder
    fault = hub_fault(source) if needed else None
    if fault:
        raise UserMistake(f"{key}: {source} {fault.what}", remedy=fault.remedy)
    return None


def _empty_network(folder: Path, key: str) -> tuple[Any, Any]:
    """Return the network without memory for its tensors, after a comparison of all names and shapes with the files."""
    import torch

    return load_network(folder, torch.float32, key, device_map="meta")


def _network_of(config: Any) -> Any:
    import torch

    with torch.device("meta"):
        return random_network(config)


def _tokenizer_remarks(folder: Path, network: Any, key: str) -> Iterator[str]:
    tokenizer, rows = load_tokenizer(folder, key), network.get_input_embeddings().weight.shape[0]
    fault = vocabulary_fault(tokenizer, rows)
    if fault:
        raise UserMistake(
            f"{key}: {fault}",
            remedy="Give the tokenizer that belongs to the model, or a model whose embedding was resized for it;"
            " without a pad_token in tokenizer_config.json the end mark pads",
        )
    outside = [text for text, number in tokenizer.get_vocab().items() if number >= rows]
    if outside:
        yield f"the special token {outside[0]} has no embedding and must not occur in records"


def _require_causal(source: str, config: Any, key: str) -> None:
    if is_causal(config) is False:
        raise UserMistake(
            f"{key}: {source} is not causal ({config.model_type}): with random weights, a change of the last token"
            " changed the logits before it",
            remedy="Give a causal language model, such as one of the kinds Llama, Qwen, Mistral, Gemma, OPT or GPT-2",
        )


def _position_remarks(network: Any, max_tokens: int) -> Iterator[str]:
    """Yield a remark if samples may be longer than the texts that a model was made for.

    Raises:
        UserMistake: it has a table of positions, which ends there.
    """
    import torch

    longest = getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1 or max_tokens <= longest:
        return
    known = network.get_input_embeddings()
    tables = [m for m in network.modules() if isinstance(m, torch.nn.Embedding) and m is not known]
    if tables:
        raise UserMistake(
            f"data.max_tokens: {max_tokens:,}, but the model has {longest:,} positions", remedy=f"Use at most {longest}"
        )
    yield f"data.max_tokens: {max_tokens:,} is more than the {longest:,} positions that the model was made for"
