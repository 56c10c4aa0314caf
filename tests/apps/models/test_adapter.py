"""The modules that LoRA adapts, for the families of models that users bring: the right ones, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from apps.base.errors import UserMistake
from apps.models.adapter import AdaptedModules, adapted_modules, with_adapter

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "gate_proj": 2, "up_proj": 2, "down_proj": 2}
ATTENTION = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 2)
OPT = dict.fromkeys(("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"), 2)
NEOX = dict.fromkeys(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), 2)
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "llama": (COMMON, LLAMA),
    "qwen2": (COMMON, LLAMA),
    "qwen3": (COMMON | {"head_dim": 16}, LLAMA),
    "mistral": (COMMON, LLAMA),
    "gemma": (COMMON | {"head_dim": 16}, LLAMA),
    "gemma2": (COMMON | {"head_dim": 16}, LLAMA),
    "gemma3_text": (COMMON | {"head_dim": 16}, LLAMA),
    "phi": (COMMON, dict.fromkeys(("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), 2)),
    "phi3": (COMMON, dict.fromkeys(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), 2)),
    "opt": (COMMON | {"ffn_dim": 128, "word_embed_proj_dim": 64, "pad_token_id": 1}, OPT),
    "gpt2": ({"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
    "gpt_neox": (SMALL | {"intermediate_size": 128}, NEOX),
    "falcon": (SMALL, NEOX),
    "bloom": ({"vocab_size": 64, "hidden_size": 64, "n_layer": 2, "n_head": 4}, NEOX),
    "mixtral": (COMMON | EXPERTS, ATTENTION),
    "gpt_oss": (COMMON | EXPERTS | {"head_dim": 16}, ATTENTION),
    "llama4_text": (COMMON | EXPERTS | {"head_dim": 16, "intermediate_size_mlp": 128}, LLAMA),  # a shared expert
    "qwen3_moe": (
        COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
        ATTENTION,
    ),
    "mamba": ({"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 4}, {"in_proj": 2}),
}


def adapter(**changes: Any) -> Any:
    spec = {"method": "fedit", "rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": "all-linear", "last_layers": None}
    return spec | changes


def network(kind: str, device: str = "meta") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **FAMILIES[kind][0]))


def adapted(kind: str, **changes: Any) -> AdaptedModules:
    return adapted_modules(with_adapter(network(kind), adapter(**changes)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_linear_meets_the_layers_of_every_family(kind: str) -> None:
    assert adapted(kind).kinds == FAMILIES[kind][1]
    last = adapted(kind, last_layers=1)
    assert last.kinds == {name: number // 2 for name, number in FAMILIES[kind][1].items()}


@pytest.mark.parametrize("kind", ["llama", "falcon", "gpt2", "llama4_text", "mamba", "qwen3_moe"])
def test_every_adapter_is_trained(kind: str) -> None:
    """An adapter without effect would be sent and averaged for nothing."""
    found = with_adapter(network(kind, "cpu"), adapter(method="fedex"))
    tokens = torch.arange(2, 14)[None]
    found(input_ids=tokens, labels=tokens).loss.backward()
    still = [n for n, p in found.named_parameters() if ".lora_B." in n and (p.grad is None or not p.grad.abs().sum())]
    assert still == []


def test_the_default_is_the_set_of_llamas_names() -> None:
    assert adapted("llama", targets=list(LLAMA)) == adapted("llama")


def test_experts_are_adapted_by_name_where_the_rule_allows_it() -> None:
    found = adapted("qwen3_moe", targets=["q_proj", "gate_proj", "up_proj", "down_proj"])
    assert found.kinds == {"q_proj": 2, "gate_up_proj": 2, "down_proj": 2} and found.notes == ()
    assert "experts" in adapted("qwen3_moe").notes[0] and "stay as they are" in adapted("mamba").notes[0]
    assert str(adapted("mamba")) == "2 modules of 1 kind (in_proj), 1,280 trained parameters"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"targets": ["q_proj"]}, "targets: q_proj meets no module .* c_attn, c_proj, c_fc"),
        ("opt", {"targets": list(LLAMA)}, "targets: o_proj meets no module"),
        ("phi3", {"targets": list(LLAMA)}, "targets: q_proj meets no module .* qkv_proj"),
        ("llama", {"targets": ["mlp"]}, "targets: mlp meets a LlamaMLP .* LoRA cannot adapt"),
        ("llama4_text", {"targets": ["router"]}, "targets: router meets a Llama4Router"),
        (
            "llama",
            {"targets": ["q_proj", "embed_tokens"], "last_layers": 1},
            "targets: embed_tokens meets no module of the last 1 layer",
        ),
        ("qwen3_moe", {"targets": ["gate_proj"]}, "targets: .*fused"),
        ("qwen3_moe", {"targets": ["gate_proj", "up_proj"], "method": "flora"}, "method: flora"),
        ("qwen3_moe", {"targets": ["gate_proj", "up_proj"], "last_layers": 1}, "last_layers: 1"),
        ("mamba", {"targets": ["in_proj", "x_proj"]}, "targets: LoRA on x_proj would have no effect"),
        ("llama", {"rank": 65}, "rank: 65 is more than the rank of model.layers.0"),
        ("llama", {"last_layers": 3}, "last_layers: 3, but the model has 2 layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserMistake, match="model.adapter." + message) as caught:
        adapted(kind, **changes)
    assert "\n" not in str(caught.value)
