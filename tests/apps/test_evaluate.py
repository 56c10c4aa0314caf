"""Losses by task; the shortcut past frozen layers changes nothing and is used only for known kinds of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from apps import evaluate as subject
from apps.artifacts.store import artifact_path, save_tensors
from apps.base.errors import ArtifactError, UserMistake, VersionMismatch
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.evaluation import losses
from apps.models import model as models
from apps.models.encoding import encode
from data.records import load_records
from data.tokenizer import tiny_tokenizer_path

PLACE = Place(site="evaluator", round=2)
TASKS = ["forward_synthesis", "molecule_generation"]
DATA = {
    "source": "embedded",
    "tasks": TASKS,
    "per_task": 3,
    "max_tokens": 48,
    "prompt": "Q: {input}\nA:",
    "loss_on": "answer",
}
SIZE = {
    "vocab_size": 768,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "head_dim": 16,
}
SIZE_OF_OPT = {
    "vocab_size": 768,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
}
OTHERS = {  # kinds whose forward pass has more to it
    "gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 8},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.3},
    "opt": {},
}


def adapter(**changes) -> dict:
    spec = {
        "method": "fedit",
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.1,
        "targets": ["q_proj", "v_proj"],
        "last_layers": 1,
    }
    return spec | changes


def spec(**changes) -> models.ModelSpec:
    return {
        "source": "tiny",
        "dtype": "float32",
        "seed": 1,
        "adapter": None,
        "tiny": {"width": 32, "layers": 3},
    } | changes


AT = subject.EvaluationSettings(
    batch_size=4, threads=1, device="cpu", precision="no", parallel=None, root="", source=""
)


def work(store: Path, **changes) -> subject.EvaluationWork:
    given = {
        "store": str(store),
        "model": spec(),
        "data": DATA,
        "split": "test",
        "code_version": code_version(),
    }
    return given | changes


def new_model(**changes) -> models.Model:
    return models._load_model.__wrapped__(json.dumps(spec(**changes)), "cpu")


def put(store: Path, tensors: dict, seed: int = 0, size: float = 0.3) -> dict:
    """Return a candidate: these tensors with noise."""
    generator = torch.Generator().manual_seed(seed)
    moved = {n: t.detach() + size * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    return {"artifact": save_tensors(store, moved, "model")}


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """Return a function that saves a small base model of a kind."""
    root = tmp_path_factory.mktemp("kinds")

    def make(kind: str, **changes) -> str:
        folder = root / f"{kind}-{len(list(root.iterdir()))}"
        sizes = SIZE_OF_OPT if kind == "opt" else SIZE
        config = transformers.AutoConfig.for_model(kind, **sizes, **changes)
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_file=str(tiny_tokenizer_path()), pad_token="<pad>", eos_token="<eos>"
        ).save_pretrained(folder)
        return str(folder)

    return make


def scored(model: models.Model, shortcut: bool) -> dict:
    model.warm = {}
    with pytest.MonkeyPatch.context() as patch:
        if not shortcut:
            patch.setattr(losses, "frozen_layers", lambda _: 0)
        return subject.task_losses(model, subject.test_set(model, work(Path()), 4))


def close(one: dict, two: dict, rel: float = 1e-5) -> bool:
    return one.keys() == two.keys() and all(one[t] == pytest.approx(two[t], rel=rel) for t in one)


def test_losses_are_those_of_each_sample_alone(tmp_path):
    model = new_model()
    candidate = put(tmp_path, model.state)
    result = subject.evaluate(PLACE, work(tmp_path), candidate, "global", at=AT)
    models.set_state(model, artifact_path(tmp_path, candidate["artifact"]))
    model.network.eval()
    totals: dict[str, list[float]] = {task: [0.0, 0, 0] for task in TASKS}
    for sample in encode(load_records("embedded", "test", TASKS, 3), model.tokenizer, DATA):
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([sample.tokens])).logits[0]
        answer = torch.tensor(sample.tokens[sample.answer_from :])
        loss = cross_entropy(logits[sample.answer_from - 1 : -1], answer, reduction="sum").item()
        entry = totals[sample.task]
        entry[0], entry[1], entry[2] = entry[0] + loss, entry[1] + 1, entry[2] + len(answer)
    assert list(result["tasks"]) == sorted(TASKS)
    for task, (loss, samples, tokens) in totals.items():
        found = result["tasks"][task]
        assert (found["samples"], found["tokens"]) == (samples, tokens)
        assert found["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert result["mean_loss"] == pytest.approx(sum(e[0] / e[2] for e in totals.values()) / 2, rel=1e-5)
    assert (result["who"], result["round"], result["artifact"]) == ("global", 2, candidate["artifact"])


def test_batch_size_does_not_matter(tmp_path):
    candidate = put(tmp_path, new_model().state)
    results = [
        subject.evaluate(PLACE, work(tmp_path), candidate, "global", at={**AT, "batch_size": n})["tasks"]
        for n in (1, 4, 100)
    ]
    assert close(results[0], results[1])
    assert close(results[0], results[2])


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("kind", ["tiny", *losses.PLAIN_KINDS])
def test_shortcut_gives_the_scores_of_the_whole_network(kind, last, base_folder, tmp_path):
    source = {} if kind == "tiny" else {"source": base_folder(kind), "tiny": None}
    model = new_model(**source, adapter=adapter(last_layers=last))
    models.set_state(model, artifact_path(tmp_path, put(tmp_path, model.state)["artifact"]))
    assert losses.frozen_layers(model) == 3 - last
    assert close(scored(model, shortcut=True), scored(model, shortcut=False))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_take_no_shortcut(kind, base_folder):
    model = new_model(source=base_folder(kind, **OTHERS[kind]), tiny=None, adapter=adapter())
    assert losses.frozen_layers(model) == 0
    assert close(scored(model, shortcut=True), scored(model, shortcut=False))


def test_layers_of_different_kinds_take_no_shortcut(base_folder):
    types = ["full_attention", "sliding_attention", "full_attention"]
    source = base_folder("qwen2", layer_types=types, sliding_window=4, use_sliding_window=True)
    assert losses.frozen_layers(new_model(source=source, tiny=None, adapter=adapter())) == 0


@pytest.mark.parametrize(("last", "frozen"), [(None, 0), (1, 2), (3, 0)])
def test_frozen_layers(last, frozen):
    assert losses.frozen_layers(new_model(adapter=adapter(last_layers=last))) == frozen
    assert losses.frozen_layers(new_model()) == 0


def test_second_artifact_is_not_evaluated_with_the_outputs_of_the_first(tmp_path):
    """The worker keeps the output of the frozen layers; it must not keep that of the trained ones."""
    given = work(tmp_path, model=spec(adapter=adapter(method="flora")))
    model = new_model(adapter=adapter(method="flora"))
    one, two = put(tmp_path, model.state, 1), put(tmp_path, model.state, 2)
    module = next(n for n in model.state if ".lora_A." in n).removesuffix(".lora_A.weight")
    joined = dict(model.state) | {f"{module}.merged.weight": torch.zeros(32, 32)}
    three = put(tmp_path, joined, 3)
    warm = [subject.evaluate(PLACE, given, c, "global", at=AT)["tasks"] for c in (one, two, three, one)]
    assert warm[0] == warm[3]
    for candidate, found in zip((two, three), warm[1:3], strict=True):
        models._load_model.cache_clear()
        assert subject.evaluate(PLACE, given, candidate, "global", at=AT)["tasks"] == found != warm[0]


def test_other_data_is_not_evaluated_on_the_kept_test_set(tmp_path):
    candidate = put(tmp_path, new_model().state)
    more = subject.evaluate(PLACE, work(tmp_path, data=DATA | {"per_task": 4}), candidate, "global", at=AT)["tasks"]
    fewer = subject.evaluate(PLACE, work(tmp_path), candidate, "global", at=AT)["tasks"]
    assert {t["samples"] for t in more.values()} == {4}
    assert {t["samples"] for t in fewer.values()} == {3}


@pytest.mark.parametrize("method", ["ffa", "flora"])
def test_update_of_a_site_is_evaluated_with_its_base(method, tmp_path):
    """An update lacks what is not trained; without its base it would be another model, or none."""
    model = new_model(adapter=adapter(method=method, last_layers=None))
    tensors = dict(model.state)
    if method == "flora":
        tensors |= {n.replace("lora_A", "merged"): torch.zeros(32, 32) for n in model.state if "lora_A" in n}
    base = put(tmp_path, tensors, 1)
    update = put(tmp_path, model.trained, 2)
    given = work(tmp_path, model=model.spec)
    models.set_state(model, *(artifact_path(tmp_path, c["artifact"]) for c in (update, base)))
    found = subject.evaluate(PLACE, given, update | {"base": base["artifact"]}, "aurora", at=AT)
    assert close(found["tasks"], scored(model, shortcut=False))
    assert found["who"] == "aurora"
    assert found["tasks"] != subject.evaluate(PLACE, given, base, "global", at=AT)["tasks"]


def test_errors_name_site_and_round(tmp_path):
    candidate = put(tmp_path, new_model().state)
    with pytest.raises(UserMistake, match="^evaluation, round 2"):
        subject.evaluate(
            PLACE, work(tmp_path, data=DATA | {"source": str(tmp_path / "nowhere")}), candidate, "global", at=AT
        )
    with pytest.raises(VersionMismatch, match="^evaluation, round 2"):
        subject.evaluate(PLACE, work(tmp_path, code_version="other"), candidate, "global", at=AT)
    artifact_path(tmp_path, candidate["artifact"]).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="^evaluation, round 2"):
        subject.evaluate(PLACE, work(tmp_path), candidate, "global", at=AT)
