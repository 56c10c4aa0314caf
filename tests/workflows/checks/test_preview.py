"""The lines of ``--check``."""

from __future__ import annotations

import dataclasses
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaigns import PROJECT, nano

from apps.base.errors import UserMistake
from site_configs.library.queues import format_walltime
from site_configs.library.site import Block, Queue
from workflows.checks.preview import _walltime_hint, describe, plan_items, robust_warning, switched_off
from workflows.planning.campaign_file import check_campaign, load_campaign, settle_dtype
from workflows.planning.plan import Plan, make_plan

BLOCK = Block("slurm", Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide"), 2, 5400)
TINY = PROJECT / "workflows" / "campaigns" / "demo.yaml"
LLAMA = TINY.with_name("smolinstruct_llama2_7b.yaml")


def test_the_lines_of_a_plan(llama: Plan, run_dir: Path) -> None:
    lines = dict(line.split(":", 1) for line in describe(llama, run_dir))
    assert "2 nodes for" in lines["block of aurora"] and "account ABC, kept over rounds" in lines["block of aurora"]
    assert "rule of 2026" in lines["block of frontier"] and str(run_dir) in lines["run directory"]
    missing = [line for line in describe(llama, run_dir) if line.startswith("not on this machine")]
    assert any(re.search("sites.polaris.data: /.*/smolinstruct/data.zip", line) for line in missing)


def test_a_quorum_without_a_deadline_gets_a_hint(run_dir: Path, machines: list[str]) -> None:
    def hints(*more: str) -> list[str]:
        plan = make_plan(load_campaign(LLAMA, [*machines, *more]), run_dir, LLAMA)
        return [line for line in describe(plan, run_dir) if line.startswith("quorum:")]

    (hint,) = hints("strategy.quorum=2")
    assert "perlmutter, polaris, aurora, frontier while" in hint and hint.endswith("--set strategy.deadline_s=SECONDS")
    assert not hints("strategy.quorum=null") and not hints("strategy.quorum=2", "strategy.deadline_s=3600")


def test_ranks_without_a_sample_are_reported(run_dir: Path) -> None:
    sets = ["sites={polaris: {account: ABC, storage_root: /eagle/ABC/cf, nodes: 4}}", "training.batch_size=6"]
    found = describe(make_plan(load_campaign(TINY, sets), run_dir, TINY), run_dir)
    assert [line for line in found if line.startswith("training of ")] == [
        "training of polaris: 16 ranks share a batch of 6, 10 have nothing to do: use fewer nodes or a larger"
        " training.batch_size"
    ]


def test_accumulated_batches_count_for_the_training_time(run_dir: Path, machines: list[str]) -> None:
    found = []
    for steps, accumulate in ((300, 3), (900, 1), (300, 1)):
        sets = [*machines, f"training.steps={steps}", f"training.accumulate={accumulate}"]
        lines = describe(make_plan(load_campaign(LLAMA, sets), run_dir, LLAMA), run_dir)
        found += [line for line in lines if line.startswith("walltime of polaris")]
    assert "training alone" in found[0] and found[0] == found[1] != found[2]


def test_a_walltime_that_is_not_set_gets_a_hint(llama: Plan, run_dir: Path, machines: list[str]) -> None:
    lines = dict(line.split(":", 1) for line in describe(llama, run_dir))
    unset = lines["walltime of aurora"].strip()
    block = llama.sites["aurora"].block
    assert block is not None
    assert unset.startswith(f"none is set, so that {format_walltime(block.walltime_s)} is asked for; a shorter job")
    assert re.search(
        r"--set sites.aurora.walltime=4h \(training alone, all rounds: .* (s|min|h) or more, an estim", unset
    )
    chosen = load_campaign(LLAMA, [*machines, "sites.aurora.walltime=4h", "sites.polaris.blocks=per_round"])
    again = dict(line.split(":", 1) for line in describe(make_plan(settle_dtype(chosen), run_dir, LLAMA), run_dir))
    assert "walltime of aurora" not in again and " 4:00:00 " in again["block of aurora"]
    assert "(training alone, a round: " in again["walltime of polaris"]


def test_a_machine_without_a_walltime_setting_gets_no_hint() -> None:
    entry = SimpleNamespace(config="local", settings={})
    plan: Any = SimpleNamespace(campaign=SimpleNamespace(sites={"alpha": entry}))
    assert _walltime_hint(plan, "alpha", BLOCK) == ""


def items(folder: Path, strategy: dict[str, Any]) -> dict[str, str]:
    campaign = settle_dtype(check_campaign(nano(strategy=strategy), folder))
    return dict(plan_items(make_plan(campaign, folder, folder)))


def test_rounds_and_versions_are_called_so(tmp_path: Path) -> None:
    found = items(tmp_path, {"name": "fedavg"})
    assert found["campaign"] == "nano, seed 3, 3 rounds of fedavg" and "samples a round" in found["training"]
    found = items(tmp_path, {"name": "fedbuff"})
    assert found["campaign"] == "nano, seed 3, 3 versions of fedbuff" and "samples a request" in found["training"]


@pytest.mark.parametrize(
    ("strategy", "off"),
    [
        ({"name": "fedavg"}, []),
        ({"name": "fedbuff", "late_binding": True}, []),
        ({"name": "fedecho"}, ["early"]),
        ({"name": "fedecho", "early": False}, []),
        ({"name": "fedecho", "early": False, "late_binding": False}, ["gather"]),
    ],
)
def test_settings_without_effect_are_listed(tmp_path: Path, strategy: dict[str, Any], off: list[str]) -> None:
    lines = switched_off(check_campaign(nano(strategy=strategy), tmp_path))
    assert [text.split()[0] for text in lines] == [f"strategy.{key}" for key in off]
    assert ("switched off" in items(tmp_path, strategy)) == bool(off)


def test_a_robust_rule_warns_of_what_one_site_alone_knows(tmp_path: Path) -> None:
    sites = {f"s{k}": {"config": "local"} for k in range(4)}
    strategy = {"rule": "median", "weights": "equal"}
    plan = make_plan(settle_dtype(check_campaign(nano(strategy=strategy, sites=sites), tmp_path)), tmp_path, tmp_path)
    warning = "median keeps what most sites agree on, and loses what only one of them knows"
    first, count = plan.tasks["s0"][0], sum(map(len, plan.tasks.values()))
    alone = f"{warning}: here {count} of {count} tasks, such as {first}"
    assert dict(plan_items(plan))["robust rule"] == alone
    assert robust_warning(dataclasses.replace(plan, tasks=dict.fromkeys(sites, (first,)))) == [warning]
    assert "robust rule" not in items(tmp_path, {"weights": "equal"})


def test_a_learning_rate_that_destroys_a_model_gets_a_remark(tmp_path: Path) -> None:
    def remarks(rate: float) -> list[str]:
        training = {"steps": 1, "learning_rate": rate}
        plan = make_plan(settle_dtype(check_campaign(nano(training=training), tmp_path)), tmp_path, tmp_path)
        return [text for key, text in plan_items(plan) if key == "learning rate"]

    assert remarks(0.003) == [] and remarks(0.1) == []
    assert remarks(1000) == ["1000 moves each weight by about as much in a step of AdamW; 1e-6 to 1e-2 are usual"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"evaluation": {"threads": 100_000}}, "evaluation.threads"), ({}, "sites.here.threads")],
)
def test_more_threads_than_cores_are_a_mistake(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    sites = {"here": {"config": "local", "threads": 100_000 if not changes else 1}}
    with pytest.raises(UserMistake, match=f"{key}: 100000, but this machine has [0-9]+ core"):
        make_plan(settle_dtype(check_campaign(nano(sites=sites, **changes), tmp_path)), tmp_path, tmp_path)


def test_the_extent_of_a_campaign(tmp_path: Path) -> None:
    extents = [check_campaign(nano(strategy=name), tmp_path).extent for name in ("fedavg", "fedprox", "fedasync")]
    assert extents == ["3 rounds", "3 rounds of fedprox", "3 versions of fedasync"]


def test_one_is_one(tmp_path: Path) -> None:
    """No ``1 rounds``, ``1 samples``, ``1 tasks`` anywhere in a plan."""
    least = {"rounds": 1, "training": {"steps": 1, "batch_size": 1, "learning_rate": 0.1}}
    sites = {"here": {"config": "local", "tasks": ["molecule_generation"]}}
    campaign = check_campaign(nano(**least, sites=sites), tmp_path)
    assert campaign.extent == "1 round"
    found = dict(plan_items(make_plan(campaign, tmp_path / "run", tmp_path)))
    assert found["training"].startswith("1 step of 1 sample a round") and found["campaign"].endswith(
        "1 round of fedavg"
    )
    assert not re.search(r"\b1 \w+s\b", " ".join(map(str, found.values())))
    with pytest.raises(UserMistake, match="2 is more than the 1 site$"):
        check_campaign(nano(**least, sites=sites, strategy={"quorum": 2}), tmp_path)


@pytest.mark.parametrize(("hours", "hint"), [(48, "4h"), (8, "4h"), (4, "2h"), (2, "1h"), (1, ""), (0.5, "")])
def test_the_walltime_that_is_advised_is_much_shorter(hours: float, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.checks.preview._training_time", lambda *_: "")
    entry = SimpleNamespace(config="slurm", settings={})
    plan: Any = SimpleNamespace(campaign=SimpleNamespace(sites={"alpha": entry}))
    block = dataclasses.replace(BLOCK, walltime_s=round(hours * 3600))
    found = _walltime_hint(plan, "alpha", block)
    assert found.endswith(f"--set sites.alpha.walltime={hint}") if hint else found == ""
