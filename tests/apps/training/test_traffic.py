"""Changes in bfloat16 between float32 models: what moves, what the server has, and what rounding leaves over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_site import PARALLEL, TRAINING, data_spec, model_spec

from apps.aggregate import aggregate
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.traffic import DELTA, rounded_change, rounded_copy
from apps.artifacts.update_checks import UpdateRules
from apps.base.errors import UpdateRefused
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.evaluate import evaluate
from apps.models.model import load_model, set_state
from apps.server import prepare
from apps.train import enrol, local_train
from apps.training.update import LEFT_OVER
from apps.transfer import stage_in, stage_out

TASKS = {"aurora": "forward_synthesis", "frontier": "molecule_captioning"}
RATE = 1e-5


class Federation:
    """Two sites and a server on the apps of a campaign, without Parsl."""

    def __init__(self, folder: Path, traffic: str, dtype: str = "float32", steps: int = 6) -> None:
        self.folder, self.steps, self.changes = folder, steps, traffic == "bfloat16"
        self.store = str(folder / "server")
        self.model = {**model_spec(dtype=dtype), "traffic": traffic, "tiny": {"width": 64, "layers": 2}}
        self.server = {"store": self.store, "model": self.model, "threads": 1, "code_version": code_version()}
        self.work = {site: self.site_work(site) for site in TASKS}
        self.shards = {site: enrol(Place(site=site, round=0), work) for site, work in self.work.items()}
        self.global_model = prepare(Place(site="server", round=0), self.server)
        self.last: dict[str, str] = {}
        self.staged: list[dict] = []

    def site_work(self, site: str) -> dict[str, Any]:
        return {
            "root": str(self.folder / site),
            "out": str(self.folder / site / "out"),
            "shared": "",
            "model": self.model,
            "data": data_spec(tasks=[TASKS[site]], per_task=24, max_tokens=128),
            "seed": 1,
            "threads": 1,
            "parallel": PARALLEL,
            "code_version": code_version(),
        }

    def round(self, number: int, rule: dict | None = None) -> list[dict]:
        updates = []
        for site, work in self.work.items():
            place, there = Place(site=site, round=number), f"{work['root']}/in"
            base = stage_out(place, self.global_model, self.store, there)
            training = {**TRAINING, "steps": self.steps, "learning_rate": RATE, "batch_size": 4}
            request = {"training": training, "optimizer_from": None, "attempt": 1}
            request |= {"left_over_from": self.last.get(site) if self.changes else None}
            manifest = local_train(place, work, request, base, self.shards[site])
            self.last[site] = manifest["task_id"]
            rules: UpdateRules = {"method": "full", "max_update_norm": None, "changes": self.changes}
            updates.append(stage_in(place, manifest, base, work["out"], self.store, rules))
            self.staged.append(base)
        place = Place(site="server", round=number)
        weights = [0.5] * len(updates)
        self.global_model = aggregate(place, self.server, self.global_model, weights, number, rule, *updates)
        return updates

    def tensors(self, artifact: dict | None = None) -> dict[str, torch.Tensor]:
        return load_tensors(artifact_path(self.store, artifact or self.global_model["artifact"]))

    def loss(self, candidate: dict | None = None) -> float:
        work = {
            "store": self.store,
            "model": self.model,
            "data": data_spec(tasks=list(TASKS.values()), per_task=6, max_tokens=128),
            "split": "test",
            "code_version": code_version(),
        }
        at: Any = {"batch_size": 6, "threads": 1, "device": "cpu", "precision": "no", "parallel": None}
        at |= {"root": "", "source": ""}
        place = Place(site="evaluator", round=0)
        return evaluate(place, work, candidate or self.global_model, "global", at=at)["mean_loss"]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    changed = sum(int((after[name] != before[name]).sum()) for name in before)
    return changed / sum(tensor.numel() for tensor in before.values())


def test_float32_models_learn_the_same_over_bfloat16_traffic_where_bfloat16_models_stand_still(tmp_path: Path) -> None:
    found = {}
    for traffic, dtype in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        federation = Federation(tmp_path / f"{traffic}-{dtype}", traffic, dtype)
        first, start = federation.tensors(), federation.loss()
        for number in (1, 2):
            federation.round(number)
        found[traffic, dtype] = start - federation.loss(), moved(first, federation.tensors())
    exact, exact_moved = found["float32", "float32"]
    ours, ours_moved = found["bfloat16", "float32"]
    pure, pure_moved = found["float32", "bfloat16"]
    assert exact > 0.004 and min(exact_moved, ours_moved) > 0.99
    assert ours == pytest.approx(exact, rel=0.02)
    assert pure_moved < 0.5 and pure != pytest.approx(exact, rel=0.1)


def test_half_of_the_bytes_travel_and_the_model_stays_float32(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=1)
    whole = federation.global_model["artifact"]["nbytes"]
    updates = federation.round(1)
    assert {update["artifact"]["kind"] for update in updates} == {DELTA}
    sizes = [base["nbytes_moved"] for base in federation.staged] + [update["nbytes_moved"] for update in updates]
    assert all(nbytes == pytest.approx(whole / 2, rel=0.02) for nbytes in sizes)
    assert {tensor.dtype for tensor in federation.tensors().values()} == {torch.float32}
    assert {t.dtype for t in federation.tensors(federation.global_model["sent"]).values()} == {torch.bfloat16}


def test_the_new_model_is_the_exact_one_plus_the_mean_change(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=2)
    federation.round(1)
    before = federation.tensors()
    assert moved(federation.tensors(federation.global_model["sent"]), before) > 0.9  # the copy is rounded
    updates = federation.round(2)
    changes = [federation.tensors(update["artifact"]) for update in updates]
    for name, tensor in federation.tensors().items():
        expected = before[name].double() + sum(0.5 * change[name].double() for change in changes)
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=3e-7)


def test_a_server_rule_steps_by_the_changes(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=2)
    before = federation.tensors()
    rule = {"name": "momentum", "rate": 0.5, "beta1": 0.0, "beta2": 0.0, "tau": 0.0}
    changes = [federation.tensors(update["artifact"]) for update in federation.round(1, rule)]
    for name, tensor in federation.tensors().items():
        expected = before[name].double() + 0.5 * sum(0.5 * change[name].double() for change in changes)
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=3e-7)


def test_a_sites_own_model_is_scored_as_the_exact_one_plus_its_change(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=2)
    master = federation.tensors()
    (update, _) = federation.round(1)
    change = federation.tensors(update["artifact"])
    whole = save_tensors(federation.store, {n: t + change[n].float() for n, t in master.items()}, "model")
    assert federation.loss(update) == federation.loss({"artifact": whole})


def test_what_rounding_leaves_over_is_sent_with_the_next_change(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=1)
    federation.round(1)
    kept = {site: load_tensors(next((tmp_path / site / LEFT_OVER).glob("*.safetensors"))) for site in TASKS}
    assert all(any(tensor.any() for tensor in tensors.values()) for tensors in kept.values())
    for number in (2, 3):
        federation.round(number)
    for site in TASKS:  # that of the last training, and that which it began with
        assert len(list((tmp_path / site / LEFT_OVER).glob("*.safetensors"))) == 2


def test_rounding_errors_do_not_add_up() -> None:
    """The sum of the sent changes stays within one rounding of the sum of the exact ones."""
    exact, sent, left = torch.zeros(1000), torch.zeros(1000), None
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        base = torch.randn(1000, generator=generator)
        step = torch.rand(1000, generator=generator) * 1e-3
        change, left = rounded_change(base.double() + step, base.double(), left)
        exact, sent = exact + step, sent + change.float()
    assert float((exact - sent).abs().max()) < 1e-5  # half a unit in the last place of 1e-3: 2e-6
    assert float((exact - sent - left.float()).abs().max()) < 2e-6


def test_an_update_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bfloat16", steps=1)
    federation.changes = False
    with pytest.raises(UpdateRefused, match="not what the campaign sends"):
        federation.round(1)


def test_integers_are_not_rounded(tmp_path: Path) -> None:
    model = save_tensors(tmp_path, {"a": torch.tensor([1.00001]), "n": torch.tensor([7, 9])}, "model")
    copy = load_tensors(artifact_path(tmp_path, rounded_copy(tmp_path, model)))
    assert copy["a"].dtype == torch.bfloat16 and copy["n"].tolist() == [7, 9]


def test_a_change_is_added_to_the_network(tmp_path: Path) -> None:
    spec = model_spec()
    model = load_model(json.loads(json.dumps(spec)))
    whole = save_tensors(tmp_path, model.state, "model")
    name, tensor = next((n, t) for n, t in model.state.items() if t.is_floating_point())
    before = tensor.detach().clone()
    change = save_tensors(tmp_path, {name: torch.full_like(tensor, 0.5, dtype=torch.bfloat16)}, DELTA)
    set_state(model, artifact_path(tmp_path, whole), change=artifact_path(tmp_path, change))
    assert torch.equal(model.state[name].detach(), before + 0.5)
