"""Asking the model of a run: what is answered, beside what, and what is generated when it cannot be."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from campaigns import PROJECT, environment
from nano_run import LESSON, TASK, first_model, nano_campaign, write_base, write_journal, write_run
from patience import patience

from apps.base.errors import StorageError
from apps.models.model import save_state
from data.records import load_records
from workflows import generate
from workflows.console.command import carry_out
from workflows.evaluation.choice import open_run
from workflows.evaluation.generation import generate_answers, left_padded, prompt_tokens
from workflows.evaluation.loading import data_spec, load_models
from workflows.generate import main

QUESTION = "At room temperature, would <SMILES> CCO </SMILES> be liquid?"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "nano")


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "adapter", model=write_base(folder / "base"))


def questions(count: int) -> list[str]:
    return [record["input"] for record in load_records("embedded", "test", [TASK], count)]


def test_the_trained_answer_stands_above_the_base_answer(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), QUESTION, "--tokens", "24"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"question: {QUESTION}"
    assert lines[1] == f"trained:  {LESSON}"
    assert lines[2].startswith("base:     ") and LESSON not in captured.out.split("base:")[1]
    assert captured.out.rstrip().endswith("…")  # the base model does not end by itself
    assert captured.err == ""


def test_several_questions_are_answered_in_their_order(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "First [b]?", "Second?", "--no-base", "--tokens", "20"]) == 0
    captured = capsys.readouterr().out
    assert captured == f"question: First [b]?\ntrained:  {LESSON}\n\nquestion: Second?\ntrained:  {LESSON}\n"


def test_questions_come_from_the_standard_input_when_none_is_given(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\n\n  Two?\n"))
    assert main([str(run_dir), "--no-base", "--tokens", "4"]) == 0
    captured = capsys.readouterr().out
    assert [line for line in captured.splitlines() if line.startswith("question")] == [
        "question: One?",
        "question: Two?",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [Terminal("not to be read"), io.StringIO("\n \n")])
def test_no_question_is_a_mistake(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main([str(run_dir)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("no question. Give it after the run") and captured.err.count("\n") == 1


def test_answers_do_not_depend_on_the_rest_of_the_batch(run_dir: Path) -> None:
    run = open_run(run_dir)
    several = questions(5)
    for loaded in load_models(run):
        together = generate_answers(loaded, several, data_spec(run), 16)
        alone = [generate_answers(loaded, [question], data_spec(run), 16)[0] for question in several]
        assert together == alone


def test_decoding_is_greedy_up_to_the_end_token(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    network: Any = loaded.model.network
    tokenizer: Any = loaded.model.tokenizer
    tokens = list(prompt_tokens(loaded.model, [QUESTION], data_spec(run), 32)[0])
    assert tokenizer.decode(tokens) == f"Q: {QUESTION}\nA:"
    generated: list[int] = []
    with torch.no_grad():
        while (
            best := int(network(torch.tensor([tokens + generated])).logits[0, -1].argmax())
        ) != tokenizer.eos_token_id:
            generated.append(best)
    (answer,) = generate_answers(loaded, [QUESTION], data_spec(run), 32)
    assert (answer.text, answer.cut) == (tokenizer.decode(generated).strip(), False)


def test_an_answer_without_an_end_is_marked_as_cut(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    (answer,) = generate_answers(loaded, [QUESTION], data_spec(run), 3)
    assert answer.cut
    assert LESSON.startswith(answer.text)


def test_more_questions_than_a_batch_are_all_answered_and_counted(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    done: list[int] = []
    answers = generate_answers(loaded, questions(20), data_spec(run), 2, done.append)
    assert (len(answers), done) == (20, [16, 4])


def test_prompts_end_where_answers_begin() -> None:
    tokens, attention = left_padded([(5, 6, 7), (8,)], pad=0)
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert attention.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_question_longer_than_the_context_loses_its_end(run_dir: Path) -> None:
    run = open_run(run_dir)
    (loaded,) = load_models(run, with_base=False)
    (prompt,) = prompt_tokens(loaded.model, ["C" * 5000], data_spec(run), 64)
    assert 440 <= len(prompt) <= 512 - 64
    decode: Any = loaded.model.tokenizer.decode
    text = decode(prompt)
    assert text.startswith("Q: CC") and text.endswith("C\nA:")  # the template stays whole, as in training


def test_the_base_of_an_adapter_is_its_network_without_it(adapter_run: Path) -> None:
    run = open_run(adapter_run)
    base, trained = load_models(run)
    assert base.model is trained.model
    plain = first_model(nano_campaign()).network.eval()
    tokens = torch.tensor([prompt_tokens(trained.model, [QUESTION], data_spec(run), 32)[0]])
    network: Any = trained.model.network
    with torch.no_grad():
        with base.active():
            assert torch.equal(network(tokens).logits, plain(tokens).logits)
        with trained.active():
            assert not torch.allclose(network(tokens).logits, plain(tokens).logits, atol=0.1)
    assert generate_answers(trained, [QUESTION], data_spec(run), 20)[0].text.startswith("<BOOLEAN> Yes")


def test_an_adapter_finds_its_base_by_the_campaign_not_by_its_own_record(adapter_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter_run, tmp_path / "run")
    record = folder / "model" / "adapter_config.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "base_model_name_or_path": "/elsewhere"}))
    run, moved = open_run(adapter_run), open_run(folder)
    there = generate_answers(load_models(run, with_base=False)[0], [QUESTION], data_spec(run), 8)
    assert generate_answers(load_models(moved, with_base=False)[0], [QUESTION], data_spec(moved), 8) == there


def test_a_model_that_an_adapter_was_merged_into_has_the_base_without_it(tmp_path: Path) -> None:
    adapter = {"method": "fedit", "rank": 4, "alpha": 16}
    section = {"source": "tiny", "tiny": {"width": 32, "layers": 1}, "adapter": adapter}
    run = open_run(write_run(tmp_path / "run", steps=5, model=section))
    base, trained = load_models(run)
    plain = first_model(nano_campaign())
    assert all(torch.equal(tensor, plain.state[name]) for name, tensor in base.model.state.items())
    after, before = trained.model.network.state_dict(), plain.network.state_dict()
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert changed and all("_proj." in name for name in changed)


def test_the_base_of_a_model_from_scratch_is_that_of_round_0(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir, tmp_path / "run")
    other = first_model(nano_campaign(seed=99))
    artifact = save_state(other, folder / "artifacts", "model")
    write_journal(folder, {"event": "task_done", "app": "prepare", "result": {"artifact": artifact}})
    base = load_models(open_run(folder))[0].model
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in base.state.items())
    (folder / "artifacts" / f"{artifact['sha256']}.safetensors").unlink()
    drawn = load_models(open_run(folder))[0].model
    again = first_model(nano_campaign())
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in drawn.state.items())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line on stderr after a mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_an_unfinished_run_is_refused_with_the_command_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "campaign.yaml").write_text(yaml.safe_dump(nano_campaign()))
    write_journal(folder, {"event": "campaign_opened"})
    captured = refused(capsys, folder, QUESTION)
    assert "has no model yet (0 of 3 rounds done)" in captured
    assert f"python workflows/fl_round.py --resume {folder}" in captured


def test_a_finished_run_without_its_model_has_no_hint_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(nano_campaign()))
    write_journal(tmp_path, {"event": "campaign_finished"})
    captured = refused(capsys, tmp_path, QUESTION)
    assert "is finished, but its folder model/ is missing" in captured and "--resume" not in captured


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, tmp_path / "none", QUESTION) == (
        f"{tmp_path / 'none'} is no run directory: it has no campaign.yaml\n"
    )


def test_a_damaged_model_is_named(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run_dir, tmp_path / "run")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refused(capsys, folder, QUESTION) == (
        f"{folder}: {folder / 'model'} has a damaged model.safetensors: no safetensors header."
        " Copy the model again, and compare its files with those of its publisher\n"
    )


def test_more_tokens_than_the_model_has_room_for_are_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured = refused(capsys, run_dir, QUESTION, "--tokens", 500)
    assert captured == "--tokens 500: this model has room for 496 at most\n"


@pytest.mark.parametrize("tokens", ["0", "-3", "many"])
def test_an_option_that_is_no_number_is_refused(tokens: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", QUESTION, f"--tokens={tokens}"])
    assert ended.value.code == 2
    assert "is not a whole number from 1 on" in capsys.readouterr().err


def test_exit_codes_of_a_failure_and_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def end_with(error: BaseException) -> int:
        def work() -> None:
            raise error

        return carry_out(work)

    assert end_with(StorageError("cannot write: disk full", file="x.csv")) == 1
    assert end_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "cannot write: disk full (x.csv)\n\nInterrupted\n"


def test_as_a_user_runs_it_there_is_nothing_but_the_answers(run_dir: Path) -> None:
    command = [sys.executable, generate.__file__, str(run_dir), QUESTION, "--tokens", "20"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=PROJECT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == [f"question: {QUESTION}", f"trained:  {LESSON}"]


def test_help_answers_at_once() -> None:
    begun = time.monotonic()
    command = [sys.executable, "-X", "importtime", generate.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert time.monotonic() - begun < patience(2.0)  # a tenth of a second on a quiet machine
    assert done.returncode == 0 and "QUESTION" in done.stdout
    assert not any(heavy in done.stderr for heavy in ("torch", "transformers", "pydantic", "rich"))
