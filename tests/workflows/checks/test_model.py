"""What ``--check`` says of base models that are well-formed and cannot be used: each a mistake with its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_models as make
import pytest
from campaigns import nano, run, write_campaign

from apps.base.errors import UserMistake
from workflows.checks.model import is_proven, missing_model, model_remarks, require_models
from workflows.planning.campaign_file import check_campaign, settle_dtype
from workflows.planning.plan import Plan, make_plan

LORA = {"method": "fedit", "rank": 4, "alpha": 8}
SHAPE = {"vocab_size": make.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 1, "bos_token_id": 1}
GPT2 = make.of_kind("GPT2Config", "GPT2LMHeadModel", **SHAPE, n_positions=512)
SHORT = make.of_kind("GPT2Config", "GPT2LMHeadModel", **SHAPE, n_positions=64)
SMALL = {key: make.SIZE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
BERT = make.of_kind("BertConfig", "BertLMHeadModel", **SMALL, vocab_size=make.VOCABULARY, intermediate_size=64)
VIT = make.of_kind("ViTConfig", "ViTModel", **SMALL, intermediate_size=64)
T5 = make.of_kind("T5Config", "T5ForConditionalGeneration", vocab_size=768, d_model=32, num_layers=1, d_ff=64, d_kv=16)
MAMBA = make.of_kind(
    "MambaConfig", "MambaForCausalLM", vocab_size=768, hidden_size=32, num_hidden_layers=2, state_size=4
)
MOE = make.of_kind(
    "Qwen3MoeConfig",
    "Qwen3MoeForCausalLM",
    **make.SIZE,
    head_dim=16,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    decoder_sparse_step=1,
)
ENDLESS = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 4300 + b"]}}"
OWN = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"

# what is wrong, how the model is made, what else is in the campaign, parts of the message
BROKEN: dict[str, tuple[Callable[[Path], Path], dict[str, Any], list[str]]] = {
    "empty folder": (lambda f: f.mkdir() or f, {}, ["model.source", "no config.json", "save_pretrained"]),
    "only gguf": (make.only_gguf, {}, ["model.source", "model.Q4_K.gguf", "llama.cpp"]),
    "adapter": (make.adapter, {}, ["model.source", "an adapter", "its base is organisation/base"]),
    "config cut": (make.cut("config.json", 20), {}, ["model.source", "damaged config.json", "in line"]),
    "config no text": (make.with_file("config.json", b"\xff\xfe\x00"), {}, ["model.source", "config.json", "no text"]),
    "config a list": (make.with_file("config.json", b"[1]"), {}, ["model.source", "config.json", "no JSON object"]),
    "config LFS": (make.with_file("config.json", LFS), {}, ["Git LFS pointer", "config.json", "git lfs pull"]),
    "no kind": (make.edited(model_type=None), {}, ["model.source", "without model_type"]),
    "unknown kind": (make.edited(model_type="nonsense"), {}, ["'nonsense'", "unknown to transformers", "Upgrade"]),
    "own code": (make.edited(model_type="mine", auto_map={"AutoConfig": "a.B"}), {}, ["'mine'", "code of its own"]),
    "own code of a kind": (
        make.with_code("config.json", model_type="mine", auto_map=OWN),
        {},
        ["'mine'", "code of its own", "not run"],
    ),
    "own attention": (make.edited(attn_implementation="o/flash"), {}, ["code for its attention", "o/flash", "not run"]),
    "own attention within": (make.edited(_attn_implementation={"text": "o/flash"}), {}, ["o/flash", "not run"]),
    "own tokenizer": (
        make.with_code("tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": [None, "own.Mine"]}),
        {},
        ["a tokenizer of the kind 'Mine'", "code of its own, which is not run"],
    ),
    "pickle": (make.with_pickle(), {}, ["weights in pickles", "not loaded", "model.safetensors", "where you trust"]),
    "pickles": (make.with_pickle("p-1.bin", "pytorch_model.bin.index.json"), {}, ["weights in pickles", "not loaded"]),
    "pickles in index": (
        make.with_pickle("p-1.bin", "model.safetensors.index.json"),
        {},
        ["index.json that names 'p-1.bin', which is no safetensors file"],
    ),
    "pickle called safetensors": (make.with_pickle("model.safetensors"), {}, ["damaged model.safetensors"]),
    "adapter beside": (make.with_file("adapter_config.json", b"{}"), {}, ["adapter_config.json", "another base model"]),
    "heads that do not fit": (make.edited(num_attention_heads=3), {}, ["cannot be loaded", "attention heads (3)"]),
    "gptq": (make.edited(quantization_config={"quant_method": "gptq", "bits": 4}), {}, ["quantised (gptq, 4 bits)"]),
    "awq": (make.edited(quantization_config={"quant_method": "awq"}), {}, ["quantised (awq)", "was made from"]),
    "t5": (T5, {}, ["model.source", "encoder-decoder", "T5ForConditionalGeneration"]),
    "bert": (BERT, {}, ["model.source", "an encoder", "BertLMHeadModel"]),
    "vit": (VIT, {}, ["model.source", "no causal language model", "ViTModel"]),
    "no weights": (make.cut("model.safetensors", 10**9), {}, ["model.source", "no weights"]),
    "weights LFS": (make.with_file("model.safetensors", LFS), {}, ["Git LFS pointer", "model.safetensors"]),
    "weights cut": (make.cut("model.safetensors", 100), {}, ["damaged model.safetensors", "bytes instead of"]),
    "weights deep": (
        make.with_file("model.safetensors", b"\xa0\x86\x01\0\0\0\0\0" + b"[" * 100_000),
        {},
        ["damaged model.safetensors", "no safetensors"],
    ),
    "weights without end": (
        make.with_file("model.safetensors", b"\0\x20\0\0\0\0\0\0" + ENDLESS.ljust(8192)),
        {},
        ["damaged model.safetensors"],
    ),
    "weights empty": (make.with_file("model.safetensors", b""), {}, ["damaged model.safetensors", "no safetensors"]),
    "shard missing": (make.cut(make.SHARDS, 10**9, shards="20KB"), {}, ["lacks 1 of its", "model-00001-of-"]),
    "shard cut": (make.cut(make.SHARDS, 100, shards="20KB"), {}, ["damaged model-00001-of-", "bytes instead of"]),
    "index cut": (make.cut("*.index.json", 30, shards="20KB"), {}, ["damaged model.safetensors.index.json"]),
    "index outside": (make.with_index("../../x-"), {}, ["index.json that names '../../x-", "no file in its folder"]),
    "index absolute": (
        make.with_index("file:///x-"),
        {},
        ["index.json that names 'file:///x-", "no file in its folder"],
    ),
    "tensor missing": (
        make.renamed(lambda n: None if "layers.1.mlp.up" in n else n),
        {},
        ["model.layers.1.mlp.up_proj.weight", "at random"],
    ),
    "prefix of DDP": (make.renamed(lambda n: f"module.{n}"), {}, ["at random", "'module.'", "DDP"]),
    "prefix of peft": (make.renamed(lambda n: f"base_model.model.{n}"), {}, ["base_model.model.", "merged by half"]),
    "prefix of compile": (make.renamed(lambda n: f"_orig_mod.{n}"), {}, ["'_orig_mod.'", "torch.compile"]),
    "names of another": (make.renamed(lambda n: n.replace("self_attn", "attention")), {}, ["self_attn", "instead"]),
    "wrong shape": (make.edited(intermediate_size=48), {}, ["does not fit its config.json", "(32, 64), not (32, 48)"]),
    "other vocabulary": (make.edited(vocab_size=700), {}, ["does not fit its config.json", "(768, 32)"]),
    "no tokenizer": (make.no_tokenizer, {}, ["model.source", "no tokenizer that can be loaded", "tokenizer.json"]),
    "tokenizer LFS": (make.with_file("tokenizer.json", LFS), {}, ["Git LFS pointer", "tokenizer.json"]),
    "tokenizer cut": (make.cut("tokenizer.json", 100), {}, ["model.source", "no tokenizer that can be loaded"]),
    "tokenizer of another": (make.with_file("tokenizer.json", b"{}"), {}, ["no tokenizer that can be loaded"]),
    "pad outside": (make.with_tokenizer(make.with_pad), {}, ["pad_token '[PAD]' is number 768", "768 emb"]),
    "words outside": (make.with_tokenizer(make.with_words), {}, ["2 tokens", "'benzene'", "outside"]),
    "no end mark": (make.with_tokenizer(lambda t: make.tokenizer()), {}, ["no end mark", "eos_token"]),
    "too few positions": (SHORT, {}, ["data.max_tokens: 128", "64 positions", "at most 64"]),
    "no such target": (make.llama, {"targets": ["foo"]}, ["model.adapter.targets: foo meets no module", "q_proj"]),
    "some such targets": (make.llama, {"targets": ["q_proj", "fc1"]}, ["model.adapter.targets: fc1 meets no module"]),
    "target is a norm": (make.llama, {"targets": ["input_layernorm"]}, ["LlamaRMSNorm", "LoRA cannot adapt"]),
    "names of Llama": (GPT2, {"targets": ["q_proj", "v_proj"]}, ["q_proj meets no module", "c_attn"]),
    "rank too large": (make.llama, {"rank": 100_000}, ["model.adapter.rank: 100,000 is more than the rank of"]),
    "too many layers": (GPT2, {"last_layers": 9}, ["model.adapter.last_layers: 9", "2 layers"]),
    "state space": (MAMBA, {"targets": ["dt_proj"]}, ["model.adapter.targets", "dt_proj", "no effect"]),
    "merged experts": (
        MOE,
        {"method": "fedex", "targets": ["gate_proj", "up_proj", "down_proj"]},
        ["model.adapter.method: fedex", "all experts", "all-linear"],
    ),
}


def plan_of(folder: Path, source: str, adapter: dict[str, Any] | None = None, **changes: Any) -> Plan:
    model = {"source": source} | ({} if adapter is None else {"adapter": LORA | adapter})
    campaign = check_campaign(nano(model=model, **changes), folder)
    return make_plan(settle_dtype(campaign), folder / "run", folder / "nano.yaml")


@pytest.mark.parametrize(("build", "adapter", "parts"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_cannot_be_used_is_a_mistake_of_the_request(
    tmp_path: Path, build: Callable[[Path], Path], adapter: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserMistake) as caught:
        model_remarks(plan_of(tmp_path, str(build(tmp_path / "base")), adapter=adapter or None), tmp_path / "nano.yaml")
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert not (tmp_path / "executed").exists()
    assert "nano.yaml: " in message and "\n" not in message and not message.endswith(":")


def remarks(folder: Path, source: Path, **changes: Any) -> list[str]:
    return [text for _, text in model_remarks(plan_of(folder, str(source), **changes), folder)]


def test_usable_models_pass_in_silence(tmp_path: Path) -> None:
    for name, build in {"llama": make.llama, "gpt2": GPT2, "mamba": MAMBA, "moe": MOE}.items():
        assert remarks(tmp_path, build(tmp_path / name)) == []
    tied = make.llama(tmp_path / "tied", tie_word_embeddings=True)
    assert remarks(tmp_path, tied) == []
    assert remarks(tmp_path, make.llama(tmp_path / "shards", shards="20KB")) == []


@pytest.mark.parametrize(
    ("build", "adapter", "found"),
    [
        (make.llama, {}, ["14 modules of 7 kinds (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj)"]),
        (GPT2, {"last_layers": 1}, ["4 modules of 3 kinds (c_attn, c_proj, c_fc)"]),
        (MAMBA, {}, ["2 modules of 1 kind (in_proj)", "dt_proj", "stay as they are"]),
        (
            MOE,
            {"method": "fedex"},
            ["8 modules of 4 kinds (q_proj, k_proj, v_proj, o_proj)", "experts", "stay as they"],
        ),
    ],
    ids=["llama", "gpt2", "mamba", "moe"],
)
def test_what_lora_adapts_is_listed(
    tmp_path: Path, build: Callable[[Path], Path], adapter: dict[str, Any], found: list[str]
) -> None:
    text = " ".join(remarks(tmp_path, build(tmp_path / "base"), adapter=adapter))
    assert [part for part in found if part not in text] == [], text


def test_what_works_with_a_reservation_is_said(tmp_path: Path) -> None:
    mark = make.with_tokenizer(make.with_image_mark)(tmp_path / "mark")
    assert remarks(tmp_path, mark) == ["the special token <image> has no embedding and must not occur in records"]
    more = make.renamed(lambda n: n)(tmp_path / "more")
    extra = make.copied(more, tmp_path / "extra")
    tensors = make.load_file(extra / "model.safetensors")
    make.save_file({**tensors, "vision.weight": tensors["model.norm.weight"].clone()}, extra / "model.safetensors")
    (said,) = remarks(tmp_path, extra)
    assert "vision.weight" in said and "does not use" in said
    (said,) = remarks(tmp_path, make.llama(tmp_path / "short", max_position_embeddings=64))
    assert said == "data.max_tokens: 128 is more than the 64 positions that the model was made for"


@pytest.mark.parametrize("source", ["gpt2", "organisation/model", "runs/demo/model"])
def test_a_name_that_is_neither_here_nor_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = plan_of(tmp_path, source)
    with pytest.raises(UserMistake, match="model.source: " + source) as caught:
        model_remarks(plan, tmp_path)
    parts = ["it does not exist"] if source.count("/") > 1 else ["not on this machine", "hf download"]
    assert [part for part in parts if part not in str(caught.value)] == []
    assert bool(missing_model(plan)) == (source.count("/") < 2)


def test_models_that_come_with_the_project_cost_no_time_at_a_start(tmp_path: Path) -> None:
    def proven(**model: Any) -> bool:
        campaign = settle_dtype(
            check_campaign(nano(model={"source": "tiny", "tiny": {"width": 32, "layers": 1}} | model), tmp_path)
        )
        return is_proven(make_plan(campaign, tmp_path / "run", tmp_path))

    assert proven() and proven(adapter=LORA)
    assert not proven(adapter=LORA | {"targets": ["q_proj"]}) and not proven(adapter=LORA | {"rank": 64})


def test_a_sites_own_model_is_checked_under_its_own_key(tmp_path: Path) -> None:
    base, sites = make.llama(tmp_path / "base"), nano()["sites"]
    sites["aurora"]["model"] = str(BERT(tmp_path / "bert"))
    with pytest.raises(UserMistake, match=r"sites.aurora.model: .*bert is an encoder"):
        require_models(plan_of(tmp_path, str(base), sites=sites), tmp_path)


@pytest.mark.parametrize("option", [["--check"], []])
def test_the_exit_code_is_that_of_a_mistake(tmp_path: Path, option: list[str]) -> None:
    folder = make.renamed(lambda n: f"module.{n}")(tmp_path / "base")
    ended = run(tmp_path, write_campaign(tmp_path, model={"source": str(folder)}), *option)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and "resume" not in ended.stderr
    assert "model.source" in ended.stderr and not (tmp_path / "runs").exists()
