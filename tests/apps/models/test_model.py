"""Models and their artifacts: set into a network, and saved for other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from apps.artifacts.lora import fresh_pair
from apps.artifacts.store import artifact_path, load_tensors, read_header, save_tensors
from apps.base.errors import ArtifactError
from apps.models import model as models
from apps.models.model import Model, full_nbytes, load_model, save_for_users, save_state, set_state
from data.tokenizer import tiny_tokenizer_path

TOKENS = torch.arange(2, 14).reshape(2, 6)
RANK, ALPHA = 2, 6.0
SCALE = ALPHA / RANK
VOCABULARY = 768


def adapter(method: str = "fedit", **changes) -> dict:
    spec = {
        "method": method,
        "rank": RANK,
        "alpha": ALPHA,
        "dropout": 0.0,
        "targets": ["q_proj", "down_proj"],
        "last_layers": None,
    }
    return spec | changes


def spec(**changes) -> models.ModelSpec:
    tiny = {"source": "tiny", "dtype": "float32", "seed": 1, "adapter": None, "tiny": {"width": 32, "layers": 2}}
    return tiny | changes


def new_model(**changes) -> Model:
    return models._load_model.__wrapped__(json.dumps(spec(**changes)), "cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Save two small base models as their publishers would."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(3)
    networks = {
        "llama": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
            )
        ),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=40)),
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_path()), eos_token="<eos>")
    for name, network in networks.items():
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in networks}


def logits(network) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return network(input_ids=TOKENS).logits


def shaken(tensors: dict[str, torch.Tensor], seed: int = 0, size: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: t.detach() + size * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}


def put(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return artifact_path(folder, save_tensors(folder, tensors, "model"))


def joined_pairs(model: Model, seed: int = 5) -> dict[str, torch.Tensor]:
    """Return a frozen pair of rank 3 for every adapted module."""
    generator, pairs = torch.Generator().manual_seed(seed), {}
    for name, tensor in model.state.items():
        module = name.removesuffix(".lora_A.weight")
        if module != name:
            outputs = model.state[f"{module}.lora_B.weight"].shape[0]
            pairs[f"{module}.merged_A.weight"] = 0.3 * torch.randn(3, tensor.shape[1], generator=generator)
            pairs[f"{module}.merged_B.weight"] = 0.3 * torch.randn(outputs, 3, generator=generator)
    return pairs


def explicit(base: Path | Model, tensors: dict[str, torch.Tensor], turned: bool = False) -> torch.Tensor:
    """Return the logits of a plain network with the weights W0 + s (merged + B A)."""
    if isinstance(base, Path):
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        network = new_model(**base.spec | {"adapter": None}).network
    with torch.no_grad():
        for name in tensors:
            if not name.endswith(".lora_A.weight"):
                continue
            module = name.removesuffix(".lora_A.weight")
            delta = tensors[f"{module}.lora_B.weight"] @ tensors[name]
            if f"{module}.merged_A.weight" in tensors:
                delta = delta + tensors[f"{module}.merged_B.weight"] @ tensors[f"{module}.merged_A.weight"]
            if f"{module}.merged.weight" in tensors:
                delta = delta + tensors[f"{module}.merged.weight"]
            weight = network.get_submodule(module.removeprefix("base_model.model.")).weight
            weight += SCALE * (delta.T if turned else delta)
    return logits(network)


@pytest.mark.parametrize("adapted", [None, adapter()])
def test_state_round_trips(adapted, tmp_path):
    model, other = new_model(adapter=adapted), new_model(adapter=adapted, seed=2)
    path = put(tmp_path, shaken(model.state))
    set_state(model, path)
    set_state(other, artifact_path(tmp_path, save_state(model, tmp_path, "model")))
    assert {n: t.tolist() for n, t in load_tensors(path).items()} == {n: t.tolist() for n, t in other.state.items()}
    if adapted is None:
        assert torch.equal(logits(model.network), logits(other.network))


def test_tiny_is_the_same_for_the_same_seed():
    torch.manual_seed(77)
    before = torch.get_rng_state()
    one = new_model()
    assert torch.equal(before, torch.get_rng_state())
    two, other = new_model(), new_model(seed=2)
    assert all(torch.equal(t, two.state[n]) for n, t in one.state.items())
    assert any(not torch.equal(t, other.state[n]) for n, t in one.state.items())


def test_tied_weights_are_stored_once():
    model = new_model()
    assert "lm_head.weight" not in model.state
    assert (
        full_nbytes(model.network)
        == sum(t.numel() * 4 for t in model.state.values())
        == 4 * model.network.num_parameters()
    )


def test_artifact_of_another_model_is_refused(tmp_path):
    model = new_model()
    tensors = dict(model.state)
    name = "model.norm.weight"
    for wrong in (
        {n: t for n, t in tensors.items() if n != name},
        tensors | {"model.extra": torch.zeros(1)},
        tensors | {name: torch.zeros(16)},
        tensors | {name: torch.zeros(1)},  # would broadcast
        {},
    ):
        path = put(tmp_path, wrong)
        with pytest.raises(ArtifactError, match="belongs to another model") as caught:
            set_state(model, path)
        assert caught.value.file == str(path)
    with pytest.raises(ArtifactError, match=r"'model\.norm\.weight'"):
        set_state(model, put(tmp_path, tensors | {name: torch.zeros(16)}))


def test_adapters_start_from_the_seed_and_change_nothing():
    model, plain = new_model(adapter=adapter()), new_model()
    for name, tensor in model.state.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        a = model.state[f"{module}.lora_A.weight"]
        pair = fresh_pair(module, RANK, a.shape[1], model.state[f"{module}.lora_B.weight"].shape[0], 1)
        assert torch.equal(tensor, pair[side == "lora_B"])
    torch.testing.assert_close(logits(model.network), logits(plain.network))


def test_adapter_names_are_those_of_peft(folders, tmp_path):
    model = new_model(source=str(folders["llama"]), tiny=None, adapter=adapter())
    save_for_users(model, tmp_path / "saved")
    assert read_header(tmp_path / "saved" / "adapter_model.safetensors").keys() == model.state.keys()


FORMS = ["none", "pairs", "dense"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["tiny", "llama", "gpt2"])
def test_forward_is_that_of_the_explicit_weights(kind, form, folders, tmp_path):
    """For GPT-2 too, whose linear layers hold their weights transposed, silently so where they are square."""
    targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "down_proj"]
    source = {} if kind == "tiny" else {"source": str(folders[kind]), "tiny": None}
    model = new_model(**source, adapter=adapter("flora", targets=targets))
    tensors = shaken(model.state)
    pairs = joined_pairs(model)
    if form == "pairs":
        tensors |= pairs
    elif form == "dense":
        tensors |= {
            n.replace("merged_A", "merged"): pairs[n.replace("merged_A", "merged_B")] @ t
            for n, t in pairs.items()
            if "merged_A" in n
        }
    set_state(model, put(tmp_path, tensors))
    expected = explicit(model if kind == "tiny" else folders[kind], tensors, turned=kind == "gpt2")
    torch.testing.assert_close(logits(model.network), expected, rtol=1e-4, atol=1e-4)
    assert (logits(model.network) - logits(new_model(**source).network)).abs().max() > 0.01


def test_base_weights_are_restored_exactly(tmp_path):
    model = new_model(adapter=adapter("flora"))
    before = {n: p.detach().clone() for n, p in model.network.named_parameters()}
    plain, joined = put(tmp_path, dict(model.state)), put(tmp_path, dict(model.state) | joined_pairs(model))
    for _ in range(3):
        set_state(model, joined)
        assert any(not torch.equal(p, before[n]) for n, p in model.network.named_parameters())
        set_state(model, plain)
        assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


def test_rounding_does_not_add_up_over_rounds(tmp_path):
    """Each round starts from W0 and rounds once, also in bfloat16."""
    model = new_model(adapter=adapter("flora"), dtype="bfloat16")
    path = put(tmp_path, dict(model.state) | joined_pairs(model))
    set_state(model, path)
    once = {n: p.detach().clone() for n, p in model.network.named_parameters()}
    set_state(model, put(tmp_path, dict(model.state) | joined_pairs(model, seed=6)))
    set_state(model, path)
    assert all(torch.equal(p, once[n]) for n, p in model.network.named_parameters())


@pytest.mark.parametrize("method", ["ffa", "flora"])
def test_update_is_set_together_with_its_base(method, tmp_path):
    """An update holds only what is trained: A under ffa, and what is merged into W0, are in its base."""
    model = new_model(adapter=adapter(method))
    base = shaken(model.state) | (joined_pairs(model) if method == "flora" else {})
    update = shaken({n: base[n] for n in model.trained}, seed=9)
    assert update.keys() < base.keys()
    set_state(model, put(tmp_path, update), put(tmp_path, base))
    torch.testing.assert_close(logits(model.network), explicit(model, base | update), rtol=1e-4, atol=1e-4)


def test_what_is_trained_takes_gradients_and_nothing_else():
    for method in ("fedit", "ffa"):
        model = new_model(adapter=adapter(method))
        wanted = {n for n in model.state if method == "fedit" or ".lora_B." in n}
        assert model.trained.keys() == wanted
        moving = {n.replace(".default.", ".") for n, p in model.network.named_parameters() if p.requires_grad}
        assert moving == wanted
    assert all(p.requires_grad for p in new_model().network.parameters())


def test_buffers_are_stored_but_take_no_gradients(monkeypatch):
    tiny = models._tiny

    def with_buffer(spec):
        network, tokenizer = tiny(spec)
        network.model.register_buffer("scale", torch.ones(2))
        return network, tokenizer

    monkeypatch.setattr(models, "_tiny", with_buffer)
    model = new_model()
    assert not model.state["model.scale"].requires_grad
    assert "model.scale" in model.trained


def test_last_layers_and_all_linear():
    last = new_model(adapter=adapter(last_layers=1))
    assert {n.split(".layers.")[1][0] for n in last.state} == {"1"}
    both = new_model(adapter=adapter(targets="all-linear", last_layers=1))
    modules = {n.split(".layers.1.")[1].removesuffix(".lora_A.weight") for n in both.state if ".lora_A." in n}
    assert modules == {*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))}
    whole = new_model(adapter=adapter(targets="all-linear"))
    assert len(whole.state) == 2 * len(both.state)


def test_a_model_is_kept_until_another_is_loaded():
    one = load_model(spec())
    assert load_model(spec()) is one
    assert load_model(spec(seed=2)) is not one


def test_saved_full_model_loads_with_transformers_alone(tmp_path):
    model = new_model()
    set_state(model, put(tmp_path, shaken(model.state)))
    save_for_users(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model.network), rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("CCO")["input_ids"] == model.tokenizer("CCO")["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_adapter_loads_with_peft_alone(kind, folders, tmp_path):
    targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "down_proj"]
    model = new_model(source=str(folders[kind]), tiny=None, adapter=adapter(targets=targets))
    set_state(model, put(tmp_path, shaken(model.state)))
    save_for_users(model, tmp_path / "saved")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model.network), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["tiny", "llama", "gpt2"])
def test_saved_model_with_merged_factors_loads_with_transformers_alone(kind, folders, tmp_path):
    targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "down_proj"]
    source = {} if kind == "tiny" else {"source": str(folders[kind]), "tiny": None}
    model = new_model(**source, adapter=adapter("fedex", targets=targets))
    set_state(model, put(tmp_path, shaken(model.state) | joined_pairs(model)))
    wanted = logits(model.network)
    save_for_users(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)


def test_adapter_on_a_tiny_base_is_saved_as_one_model(tmp_path):
    model = new_model(adapter=adapter())
    set_state(model, put(tmp_path, shaken(model.state)))
    wanted = logits(model.network)
    save_for_users(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_has_lost_its_adapters_is_not_used_again(tmp_path):
    model = load_model(spec(adapter=adapter()))
    save_for_users(model, tmp_path / "saved")
    again = load_model(spec(adapter=adapter()))
    assert again is not model
    set_state(again, put(tmp_path, dict(again.state)))


def test_a_fingerprint_distinguishes_checkpoints_and_ignores_adapters():
    one, other = (models.load_first_model(spec(seed=seed)) for seed in (1, 2))
    assert models.fingerprint(one.network) != models.fingerprint(other.network)
    assert models.fingerprint(models.load_first_model(spec(seed=1)).network) == models.fingerprint(one.network)
    adapted = models.load_first_model(spec(seed=1, adapter=adapter()))
    before = adapted.fingerprint
    with torch.no_grad():
        for tensor in adapted.trained.values():
            tensor.add_(1.0)
    assert len(before) == 64 and models.fingerprint(adapted.network) == before
