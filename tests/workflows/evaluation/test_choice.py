"""Which model of a run is asked: the final one, the newest of an unfinished run, that of a round, or the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nano_run import LESSON, first_model, nano_campaign, teach, write_journal

from apps.base.errors import UserMistake
from apps.models.model import save_state
from workflows.evaluation.choice import open_run
from workflows.evaluation.loading import load_models
from workflows.generate import main


def done(app: str, number: int, artifact: Any, **result: Any) -> dict[str, Any]:
    return {"event": "task_done", "app": app, "round": number, "result": {"artifact": artifact, **result}}


def scored(number: int, artifact: Any, loss: float) -> dict[str, Any]:
    tasks = {"t": {"loss": loss, "samples": 1, "tokens": 1}}
    return done("evaluate", number, artifact, who="global", tasks=tasks, mean_loss=loss)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose driver was killed after two of three rounds: only the model of the first has learnt the lesson."""
    folder = tmp_path_factory.mktemp("runs") / "nano"
    (folder / "artifacts").mkdir(parents=True)
    settings = nano_campaign()
    (folder / "campaign.yaml").write_text(yaml.safe_dump(settings))
    model = first_model(settings)
    first = save_state(model, str(folder / "artifacts"), "model")
    teach(model, 200)
    taught = save_state(model, str(folder / "artifacts"), "model")
    events = [done("prepare", 0, first), scored(0, first, 5.0)]
    for number, artifact, loss in ((1, taught, 1.0), (2, first, 5.0)):
        events += [done("aggregate", number, artifact, version=number), scored(number, artifact, loss)]
    write_journal(folder, {"event": "campaign_opened"}, *events)
    return folder


@pytest.mark.parametrize(("options", "number"), [({}, 2), ({"number": 1}, 1), ({"number": 0}, 0), ({"best": True}, 1)])
def test_any_global_model_of_an_unfinished_run(stopped: Path, options: dict[str, Any], number: int) -> None:
    run = open_run(stopped, **options)
    assert (run.chosen.number, run.text) == (number, f"the global model of round {number} of 3")
    base, trained = load_models(run)
    same = all(torch.equal(tensor, base.model.state[name]) for name, tensor in trained.model.state.items())
    assert same == (number != 1)


def test_a_question_may_follow_an_option(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stopped), "--best", "--tokens", "24", "Is it?"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:2] == ["question: Is it?", f"trained:  {LESSON}"]
    assert captured.err.strip() == "trained: the global model of round 1 of 3"


@pytest.mark.parametrize(
    ("options", "words"),
    [({"number": 3}, "has the models of round 0 to 2"), ({"number": -1}, "has the models of round 0 to 2")],
)
def test_a_round_without_a_model_is_a_mistake(stopped: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        open_run(stopped, **options)


def test_a_model_that_was_removed_is_named(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "artifacts").mkdir(parents=True)
    for name in ("campaign.yaml", "journal.jsonl"):
        (folder / name).write_text((stopped / name).read_text())
    with pytest.raises(UserMistake, match="the model of round 2 is not in .*artifacts: it was removed"):
        open_run(folder)
