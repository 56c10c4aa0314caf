"""The algorithm study as a command: tables, figures, resume, and user mistakes."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from workflows import algorithm_study
from workflows.strategies import SECTIONS, AnySection
from workflows.studies.simulation import runs as runs_module
from workflows.studies.simulation.queue_check import check_queue
from workflows.studies.simulation.runs import (
    CODE_FILES,
    CODE_FOLDERS,
    ROOT,
    StudyRun,
    cached_result,
    code_sha256,
    node_hours_to,
    thinned,
    time_to,
)
from workflows.studies.simulation.scenarios import SCENARIOS
from workflows.studies.simulation.study_figures import paint_times
from workflows.studies.simulation.study_strategies import (
    ABLATIONS,
    CONTESTANTS,
    KNOWN,
    OURS,
    PUBLISHED,
    TUNED,
    setting_of,
)
from workflows.studies.simulation.study_tables import comparison_rows
from workflows.studies.simulation.trace import read_trace

COLUMNS = [
    "strategy",
    "seed",
    "scenario",
    "sites",
    "time_to_target_s",
    "final_loss",
    "final_accuracy",
    "steps",
    "node_hours",
    "worst_task_loss",
]
PICTURES = {"loss.png", "site_losses.png", "time_to_target.png", "staleness.png", "fairness.png", "node_hours.png"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = [f"{k} {600 * k} {(k * 37) % 900} 60 2 -1 -1 2 3600 -1 1 1 1 1 1 1 -1 -1" for k in range(1, 400)]
    path = tmp_path / "small.swf.gz"
    path.write_bytes(gzip.compress(("; comment\n" + "\n".join(lines)).encode()))
    return path


def study(out: Path, *arguments: str) -> list[dict[str, str]]:
    common = ["--seeds", "2", "--budget-s", "20000", "--out", str(out), "--workers", "1", "--alpha", "0.5"]
    assert algorithm_study.main([*common, *arguments]) == 0
    with open(out / "runs.csv") as stream:
        return list(csv.DictReader(stream))


def test_a_study_of_two_strategies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = study(tmp_path / "a", "--strategies", "fedavg,fedbuff", "--scenario", "calm", "--target", "2.0")
    assert list(rows[0]) == COLUMNS
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        ("fedavg", "0"),
        ("fedbuff", "0"),
        ("fedavg", "1"),
        ("fedbuff", "1"),
    ]
    for row in rows:
        assert row["scenario"] == "calm" and row["sites"] == "4"
        assert 0 < float(row["time_to_target_s"]) < 20_000 and int(row["steps"]) > 100
        assert 0 < float(row["final_loss"]) < float(row["worst_task_loss"])
    assert {path.name for path in (tmp_path / "a").iterdir()} >= PICTURES
    with open(tmp_path / "a" / "curves.csv") as stream:
        models = {row["model"] for row in csv.DictReader(stream)}
    assert models == {"global", "site1", "site2", "site3", "site4"}
    assert "fedbuff" in capsys.readouterr().out


def test_staleness_shares_and_the_cost_of_the_target_are_written(tmp_path: Path) -> None:
    study(tmp_path / "a", "--strategies", "fedavg,fedbuff", "--scenario", "calm", "--target", "2.0")

    def rows(name: str) -> list[dict[str, str]]:
        with open(tmp_path / "a" / name) as stream:
            return list(csv.DictReader(stream))

    staleness = {(row["strategy"], int(row["staleness"])): int(row["updates"]) for row in rows("staleness.csv")}
    assert {s for name, s in staleness if name == "fedavg"} == {0}
    assert {s for name, s in staleness if name == "fedbuff"} >= {0, 1, 2}
    shares: dict[tuple[str, str], float] = {}
    for row in rows("shares.csv"):
        key = (row["strategy"], row["seed"])
        shares[key] = shares.get(key, 0.0) + float(row["share"])
    assert len(shares) == 4 and all(total == pytest.approx(1, abs=1e-5) for total in shares.values())
    whole = {(row["strategy"], row["seed"]): float(row["node_hours"]) for row in rows("runs.csv")}
    for row in rows("details.csv"):
        assert 0 < float(row["node_hours_to_target"]) <= whole[row["strategy"], row["seed"]]


def test_an_interrupted_study_continues(tmp_path: Path) -> None:
    done = tmp_path / "a" / "done"
    arguments = ["--strategies", "fedavg", "--scenario", "calm", "--target", "2.0"]
    rows = study(tmp_path / "a", *arguments)
    first, second = sorted(done.iterdir(), key=lambda path: json.loads(path.read_text())["run"]["seed"])
    second.unlink()
    kept = first.stat().st_mtime_ns
    assert study(tmp_path / "a", *arguments) == rows
    assert first.stat().st_mtime_ns == kept and second.exists()


def test_a_saved_result_is_read_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, section = setting_of("fedbuff", "calm")
    one = StudyRun("fedbuff", section, steps, "calm", 3, 0.5, 1, 9000.0)
    first = cached_result(one, str(tmp_path), "code")
    monkeypatch.setattr(runs_module, "run_campaign", None)  # a second training would fail
    assert json.loads(json.dumps(first)) == cached_result(one, str(tmp_path), "code")
    with pytest.raises(TypeError):
        cached_result(one, str(tmp_path), "other code")


def test_the_code_hash_changes_with_each_file_that_decides_a_result(tmp_path: Path) -> None:
    for folder in (*CODE_FOLDERS, *(Path(name).parent for name in CODE_FILES)):
        shutil.copytree(ROOT / folder, tmp_path / folder, dirs_exist_ok=True)
    hashes = {code_sha256(tmp_path)}
    assert hashes == {code_sha256()}
    for name in (*(f"{folder}/base.py" for folder in CODE_FOLDERS), "workflows/strategies/fedecho.py", *CODE_FILES):
        with open(tmp_path / name, "a") as stream:
            stream.write("# edited\n")
        hashes.add(code_sha256(tmp_path))
    assert len(hashes) == len(CODE_FOLDERS) + len(CODE_FILES) + 2


def test_a_replay_takes_any_trace_and_checks_the_queue_model(tmp_path: Path, trace: Path) -> None:
    rows = study(tmp_path / "r", "--strategies", "area", "--scenario", "replay", "--trace", str(trace), "--sites", "3")
    assert {row["scenario"] for row in rows} == {"replay"}
    assert (tmp_path / "r" / "queue_model.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--strategies", "fedmagic"], "fedmagic"),
        (["--scenario", "replay"], "--trace"),
        (["--scenario", "replay", "--trace", "no.swf"], "no.swf"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert algorithm_study.main([*arguments, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert word in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments", [["--alpha", "0"], ["--seeds", "0"], ["--budget-s", "nan"], ["--alpha", "x"]])
def test_meaningless_numbers_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        algorithm_study.main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize("scenario", SCENARIOS[:3])
def test_every_scenario_has_its_own_budget(scenario: str) -> None:
    for arguments, budget_s in ([], algorithm_study.BUDGETS_S[scenario]), (["--budget-s", "17000"], 17_000.0):
        study = algorithm_study.plan(algorithm_study.parse(["--scenario", scenario, "--seeds", "2", *arguments]))
        assert {run.budget_s for run in study.runs} == {budget_s} and len(study.runs) == 30


def test_the_best_of_the_others_comes_first() -> None:
    def result(name: str, seed: int, reached: float | None, loss: float) -> dict[str, Any]:
        lows = [(0.0, 2.3, 0.0), *([(reached, 0.5, 1.0)] if reached else []), (9e4, loss, 9.0)]
        return {
            "run": {"strategy": name, "seed": seed},
            "lows": lows,
            "final_loss": loss,
            "worst_task_loss": 2 * loss,
            "node_hours": 10.0,
        }

    results = [result("ours", seed, 3600.0, 0.2) for seed in range(3)]
    results += [result("never", seed, None, 0.7) for seed in range(3)]
    results += [result("worse", seed, None, 0.9) for seed in range(3)]
    results += [result("quick", seed, 7200.0, 0.4) for seed in range(3)]
    rows = comparison_rows(results, 0.5, "ours")
    assert [row[0] for row in rows] == ["quick", "never", "worse"]
    assert rows[0][1:4] == ["0.5 [0.5, 0.5]", "1.00", "1 [1, 1]"]
    assert rows[1][1].startswith("0 ") and rows[0][4] == "-0.2 [-0.2, -0.2]"


def test_every_contestant_has_settings_that_its_schema_takes() -> None:
    sections = TypeAdapter(AnySection)
    for scenario in SCENARIOS:
        for name in KNOWN:
            steps, section = setting_of(name, scenario)
            assert steps > 0 and json.loads(section)["name"] in name
            assert sections.validate_python(json.loads(section))
    assert all(set(settings) == set(CONTESTANTS) == set(SECTIONS) for settings in TUNED.values())
    assert algorithm_study.chosen("ablation") == [OURS, *ABLATIONS]
    assert algorithm_study.chosen("published") == list(PUBLISHED)


def test_times_and_thinning() -> None:
    result = {"lows": [(0.0, 2.3, 0.0), (10.0, 0.6, 0.5), (30.0, 0.4, 2.0)]}
    assert (time_to(result, 0.6), time_to(result, 0.5), time_to(result, 0.1)) == (10.0, 30.0, None)
    assert (node_hours_to(result, 0.5), node_hours_to(result, 0.1)) == (2.0, None)
    points = thinned(list(range(1000)))
    assert len(points) == 240 and (points[0], points[-1]) == (0, 999) and thinned([1, 2]) == [1, 2]


def test_the_model_of_a_trace_has_its_quantiles(trace: Path) -> None:
    jobs = read_trace(trace)
    check = check_queue(jobs, jobs)
    (cell,) = check.cells
    assert (cell.name, cell.jobs) == ("from 2 nodes, 0-1 h", 399)
    assert cell.trace_s[0] == pytest.approx(float(np.median(jobs.wait_s)))
    assert cell.model_s == pytest.approx(cell.trace_s, rel=0.2)
    for level, measured, model in check.quantiles:
        if 0.2 <= level <= 0.8:
            assert model == pytest.approx(measured, rel=0.35)
    slowest = [model for _, _, model in check.slowest]
    assert slowest == sorted(slowest)


def test_the_middle_of_an_even_number_of_seeds_is_drawn_between_the_two() -> None:
    runs = [{"strategy": "fedecho", "seed": seed, "budget_s": 36_000.0} for seed in range(2)]
    found = zip(runs, (3600.0, 10_800.0), strict=True)
    figure = paint_times([{"run": run, "lows": [(reached, 0.4, 1.0)]} for run, reached in found], 0.5)
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert marks == [2.0]
