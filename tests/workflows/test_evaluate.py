"""Losses and metrics of the trained and the base model: their values, the table, the file."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from campaigns import environment
from nano_run import TASK, write_base, write_run
from patience import patience
from rich.console import Console

from apps.models.encoding import encode
from data.records import Record, load_records
from workflows import evaluate
from workflows.evaluate import losses, main, metrics, task_scores
from workflows.evaluation.choice import OpenedRun, open_run
from workflows.evaluation.generation import answer_limit
from workflows.evaluation.loading import LoadedModel, data_spec, load_models
from workflows.evaluation.scores import Score, as_csv, as_table, mean_losses, remarks, values_text


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "nano")


def rows_of(run_dir: Path) -> dict[tuple[str, str, str], tuple[float, int]]:
    with (run_dir / "evaluation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(r["model"], r["task"], r["metric"]): (float(r["value"]), int(r["samples"])) for r in rows}


def printed(scores: list[Score], width: int = 80) -> str:
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(as_table(scores))
    return console.export_text()


def test_the_file_has_the_share_of_right_answers(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--per-task", "6", "--tokens", "20"]) == 0
    captured, rows = capsys.readouterr(), rows_of(run_dir)
    right = [record["raw_output"] == "Yes" for record in load_records("embedded", "test", [TASK], 6)]
    assert 0 < sum(right) < 6
    assert rows["trained", TASK, "accuracy"] == (pytest.approx(sum(right) / 6, abs=1e-6), 6)
    assert rows["trained", TASK, "answered"] == (1.0, 6)
    assert rows["base", TASK, "answered"] == (0.0, 6)
    assert rows["trained", TASK, "loss"][0] < rows["base", TASK, "loss"][0]
    assert captured.err == ""
    assert f"0% → {sum(right) / 6:.0%}" in captured.out and "0 → 6 of 6" in captured.out
    assert "Split test, 6 samples of a task (the campaign's own losses use 1 of a task)." in captured.out
    assert f"Written: {run_dir / 'evaluation.csv'}" in captured.out
    assert sorted(path.name for path in run_dir.iterdir()) == ["campaign.yaml", "evaluation.csv", "model"]


def loss_by_hand(run: OpenedRun, loaded: LoadedModel, records: list[Record]) -> float:
    """Mean cross entropy of the tokens of the answers, one sample after the other, without batches."""
    network: Any = loaded.model.network
    total, count = 0.0, 0
    for sample in encode(records, loaded.model.tokenizer, data_spec(run)):
        with loaded.active(), torch.no_grad():
            logits = network(torch.tensor([sample.tokens])).logits[0]
        right = torch.tensor(sample.tokens[sample.answer_from :])
        total -= float(logits.log_softmax(-1)[sample.answer_from - 1 : -1].gather(1, right[:, None]).sum())
        count += len(right)
    return total / count


@pytest.mark.parametrize("adapted", [False, True])
def test_the_loss_is_the_mean_over_the_tokens_of_the_answers(run_dir: Path, tmp_path: Path, adapted: bool) -> None:
    folder = run_dir
    if adapted:  # on the last of two layers, so that the first is gone through once for both models
        folder = write_run(tmp_path / "run", steps=30, model=write_base(tmp_path / "base", layers=2))
    run, records = open_run(folder), load_records("embedded", "test", [TASK], 3)
    found = {}
    for loaded in load_models(run):
        (score,) = losses(run, loaded, records)
        assert (score.model, score.task, score.samples) == (loaded.name, TASK, 3)
        assert score.value == pytest.approx(loss_by_hand(run, loaded, records), rel=1e-4)
        found[score.model] = score.value
    assert found["trained"] < found["base"] - 0.2
    assert found["base"] == pytest.approx(6.6, abs=0.3)  # the logarithm of the vocabulary's 768 tokens


def test_without_the_base_only_the_trained_model_is_scored(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--per-task", "1", "--tokens", "4", "--no-base"]) == 0
    assert {model for model, _, _ in rows_of(run_dir)} == {"trained"}
    assert "→" not in capsys.readouterr().out


def test_tasks_and_split_can_be_chosen(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--tasks", "chemical_reaction", "--split", "dev", "--no-base"]
    assert main([str(run_dir), "--per-task", "1", "--tokens", "4", *chosen]) == 0
    assert {task for _, task, _ in rows_of(run_dir)} == {"forward_synthesis", "retrosynthesis"}
    assert "Split dev, 1 sample of a task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "chemical_reaktion"], "did you mean 'chemical_reaction'?"),
        (["--split", "tset"], "unknown split 'tset'"),
        (["--tokens", "600"], "--tokens 600: this model has room for 496 at most"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (run_dir / "evaluation.csv").unlink(missing_ok=True)
    assert main([str(run_dir), *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
    assert not (run_dir / "evaluation.csv").exists()


def test_a_run_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path} is no run directory: it has no campaign.yaml\n"


def test_a_file_that_cannot_be_written_is_a_failure(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "evaluation.csv").unlink(missing_ok=True)
    (run_dir / "evaluation.csv").mkdir()
    assert main([str(run_dir), "--per-task", "1", "--tokens", "2", "--no-base"]) == 1
    assert "cannot write" in capsys.readouterr().err
    (run_dir / "evaluation.csv").rmdir()


def test_an_answer_may_be_as_long_as_the_longest_right_one(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    (record,) = load_records("embedded", "test", [TASK], 1)
    long = " ".join(["word"] * 150)
    tokens = len(loaded.model.tokenizer(long, add_special_tokens=False)["input_ids"])
    assert tokens > 96 and answer_limit(loaded.model, ["Yes", long]) == tokens + 16
    assert answer_limit(loaded.model, [long * 100]) == 496  # what the context leaves beside a question
    scores = {s.metric: s.value for s in metrics(run, loaded, [record], 1)}
    assert scores["cut"] == 1.0
    assert remarks([Score("trained", TASK, "cut", 0.5, 4)])[-1] == (
        f"{TASK}: 2 of 4 answers of the trained model reached the limit of tokens."
    )


def test_all_right_answers_of_the_split_count() -> None:
    asked = cast(Record, {**sample("retrosynthesis", "q", "CC.O"), "target": None})
    other = {("retrosynthesis", "q", None): ["CC.O", "CN"]}
    for golds, right in ((None, 0.0), (other, 1.0)):
        found = task_scores("trained", "retrosynthesis", [(asked, "<SMILES> CN </SMILES>")], golds)
        assert {s.metric: s.value for s in found}["exact_match"] == right


def sample(task: str, question: str, answer: str) -> Record:
    return cast(Record, {"task": task, "input": question, "raw_input": question, "raw_output": answer})


def scored(task: str, *pairs: tuple[str, str]) -> dict[str, float]:
    """Metrics of (right answer, generated text) pairs."""
    asked = [(sample(task, f"q{n}", answer), text) for n, (answer, text) in enumerate(pairs)]
    return {score.metric: score.value for score in task_scores("trained", task, asked)}


def test_the_answer_is_taken_out_of_its_tags_before_it_is_scored() -> None:
    found = scored(
        "name_conversion-s2f",
        ("C2H6O", "The formula is <MOLFORMULA> C2OH6 </MOLFORMULA>."),
        ("C2H6O", "C2H6O"),
        ("CH4", "<MOLFORMULA> C2H4 </MOLFORMULA>"),
    )
    assert found == {"element_match": pytest.approx(1 / 3), "answered": pytest.approx(2 / 3)}


def test_numbers_are_scored_by_their_error_over_the_answers_that_are_numbers() -> None:
    found = scored("property_prediction-mp", ("32", "<NUMBER> 30 </NUMBER>"), ("10", "warm"))
    assert found == {"rmse": 2.0, "answered": 0.5}
    assert scored("property_prediction-mp", ("32", "warm")) == {"answered": 0.0}


def test_molecules_are_compared_with_rdkit() -> None:
    pytest.importorskip("rdkit")
    found = scored("forward_synthesis", ("CCO", "<SMILES> OCC </SMILES>"), ("CCO", "<SMILES> C( </SMILES>"))
    assert (found["exact_match"], found["validity"], found["morgan_tanimoto"], found["answered"]) == (0.5, 0.5, 1, 1)


def test_a_missing_rdkit_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    asked = sample("forward_synthesis", "q", "CCO")
    scores = task_scores("trained", "forward_synthesis", [(asked, "<SMILES> CCO </SMILES>")])
    assert {score.metric: score.value for score in scores} == {"exact_match": 1.0, "answered": 1.0}
    assert remarks(scores) == ["Without rdkit, SMILES are compared as text only: pip install 'crossfed[chemistry]'"]


def test_a_users_task_has_a_loss_and_no_metric(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    own = cast(Record, {**sample("my_task", "What?", "That"), "output": "That"})
    assert metrics(run, loaded, [own], 4) == []
    scores = losses(run, loaded, [own])
    assert [(score.task, score.metric) for score in scores] == [("my_task", "loss")]
    assert remarks(scores) == ["No metric is known for my_task: only the loss is shown."]
    assert "– of 1" in printed(scores)


BOTH = [
    Score("base", "forward_synthesis", "loss", 2.0, 5),
    Score("base", "property_prediction-mp", "loss", 4.0, 5),
    Score("base", "forward_synthesis", "exact_match", 0.4, 5),
    Score("base", "forward_synthesis", "answered", 0.4, 5),
    Score("base", "property_prediction-mp", "answered", 0.0, 5),
    Score("trained", "forward_synthesis", "loss", 1.0, 5),
    Score("trained", "property_prediction-mp", "loss", 1.5, 5),
    Score("trained", "forward_synthesis", "exact_match", 0.2, 5),
    Score("trained", "forward_synthesis", "answered", 1.0, 5),
    Score("trained", "property_prediction-mp", "rmse", 181.23, 5),
    Score("trained", "property_prediction-mp", "answered", 1.0, 5),
]


def test_the_table_puts_base_before_trained() -> None:
    lines = [line.split() for line in printed(BOTH).splitlines()]
    assert lines[0] == ["base", "→", "trained"]
    assert [
        "forward_synthesis",
        "2.000",
        "→",
        "1.000",
        "exact",
        "match",
        "40%",
        "→",
        "20%",
        "2",
        "→",
        "5",
        "of",
        "5",
    ] in lines
    assert ["property_prediction-mp", "4.000", "→", "1.500", "rmse", "–", "→", "181", "0", "→", "5", "of", "5"] in lines
    assert lines[-1] == ["mean", "over", "the", "tasks", "3.000", "→", "1.250"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    longest = [
        Score(m, "property_prediction-liquid", k, v, 5)
        for m, v in (("base", 0.0), ("trained", 1.0))
        for k in ("loss", "element_match", "answered")
    ]
    assert max(len(line.rstrip()) for line in printed(longest, width=200).splitlines()) <= 80


def test_better_is_green_and_worse_is_red_whichever_way_the_metric_goes() -> None:
    mine = [score for score in BOTH if score.task == "forward_synthesis"]
    assert values_text(mine, "loss").style == "green"
    assert values_text(mine, "exact_match").style == "red"
    assert values_text([score for score in BOTH if score.metric == "rmse"], "rmse").style == ""


def test_the_mean_loss_is_over_the_tasks() -> None:
    assert [(score.model, score.value) for score in mean_losses(BOTH)] == [("base", 3.0), ("trained", 1.25)]


def test_the_file_is_plain_columns() -> None:
    lines = as_csv(BOTH).splitlines()
    assert lines[0] == "model,task,metric,value,samples"
    assert lines[1] == "base,forward_synthesis,loss,2.000000,5"
    assert len(lines) == 1 + len(BOTH)


def test_help_answers_at_once() -> None:
    begun = time.monotonic()
    command = [sys.executable, "-X", "importtime", evaluate.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert time.monotonic() - begun < patience(2.0)  # a tenth of a second on a quiet machine
    assert done.returncode == 0 and "--per-task" in done.stdout
    assert not any(heavy in done.stderr for heavy in ("torch", "transformers", "pydantic", "rich"))
