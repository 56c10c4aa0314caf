"""Updates that are put aside by held-out loss and let in by hand, through the live engine and over resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from benchmarks import orchestration as trainer

from apps.base.errors import CrossfedError, UserMistake
from workflows.dataflow import round as round_module
from workflows.dataflow.admission import Admission, admissible, admit
from workflows.dataflow.engine import Engine
from workflows.dataflow.replay import recorded_events
from workflows.fl_round import federate
from workflows.planning.campaign import ChecksSection
from workflows.planning.plan import make_plan
from workflows.records.failed_trainings import common_cause
from workflows.records.journal import Journal
from workflows.records.run_directory import RunDirectory, open_existing, open_new
from workflows.reporting.problem_lines import problem_text
from workflows.runtime import kernel as kernel_module
from workflows.strategies.base import Train
from workflows.strategies.fedavg import FedAvg

NAMES = ("prepare", "enrol", "local_train", "save_model")
BAD = ("site01", 2)


def evaluate(place: dict, work: dict, candidate: dict, who: str, *, at: dict) -> dict[str, Any]:
    found = trainer.evaluate(place, work, candidate, who, at=at)
    return found | {"mean_loss": 4.5 if (who, place["round"]) == BAD else 3.0}


@pytest.fixture(autouse=True)
def without_machines() -> Iterator[None]:
    replaced = {name: getattr(trainer, name) for name in NAMES} | {"evaluate": evaluate}
    with (
        mock.patch.multiple(round_module, **replaced),
        mock.patch.object(kernel_module, "make_config", trainer.in_threads),
    ):
        yield


def campaign_of(bound: float | None) -> Any:
    return trainer.campaign_of(2, 3).model_copy(update={"checks": ChecksSection(max_loss_increase=bound)})


def opened(folder: Path, bound: float | None) -> RunDirectory:
    folder.mkdir()
    (folder / "campaign.yaml").write_text("")
    return open_new(folder / "run", campaign_of(bound), folder / "campaign.yaml", [], None)


def again(run: RunDirectory) -> RunDirectory:
    run.close()
    return open_existing(run.path)


def drive(
    run: RunDirectory,
    bound: float | None = 1.0,
    quorum: int | None = None,
    on_tick: Callable[[Engine], None] = lambda engine: None,
) -> str | None:
    plan = make_plan(campaign_of(bound), run.path, run.path / "campaign.yaml")
    with kernel_module.parsl_for(plan, run) as kernel:
        return federate(FedAvg(3, 1, "equal", quorum), Engine(plan, run, kernel, on_tick))


def versions(run: RunDirectory) -> list[str]:
    return [r["result"]["artifact"]["sha256"] for r in run.journal.events("task_done") if r["app"] == "aggregate"]


def trainings(run: RunDirectory) -> list[tuple[str, int]]:
    return [(r["site"], r["round"]) for r in run.journal.events("task_done") if r["app"] == "local_train"]


def test_an_update_is_put_aside_until_it_is_let_in_and_a_resume_makes_the_same_models(tmp_path: Path) -> None:
    free = opened(tmp_path / "free", None)
    assert drive(free, None) is None
    assert not [r for r in free.journal.events("task_done") if r["app"] == "evaluate" and r["site"] == BAD[0]]
    run = opened(tmp_path / "bound", 1.0)
    for times in (1, 2):  # a resume alone changes nothing
        failure = drive(run)
        assert failure is not None and "round 2 has 1 of 2 updates and needs 2: site01: site site01, round 2" in failure
        run = again(run)
        assert sum(1 for _ in run.journal.events("update_put_aside")) == times
    record = list(run.journal.events("update_put_aside"))[-1]
    assert problem_text(record) == (
        "site site01, round 2: update put aside: with it the mean held-out loss is 4.5, more than 1 above 3, that of"
        " the model it started from (checks.max_loss_increase). If the update is sound, resume with --admit site01:2"
    )
    assert common_cause(run.journal) is None  # a resume may succeed
    admit(run.journal, admissible(run.journal, ["site01:2"]))
    for events in (4, 6):

        def interrupt(engine: Engine, events: int = events) -> None:
            if len(recorded_events(engine.run.journal)) >= events:
                raise KeyboardInterrupt

        run = again(run)
        with pytest.raises(KeyboardInterrupt):
            drive(run, on_tick=interrupt)
    run = again(run)
    assert drive(run) is None
    assert versions(run) == versions(free)
    assert len(trainings(run)) == len(set(trainings(run))) == 6
    scored = [(r["result"]["who"], r["round"]) for r in run.journal.events("task_done") if r["app"] == "evaluate"]
    assert len(scored) == len(set(scored))  # no model is evaluated twice


def test_with_a_quorum_the_round_goes_on_and_cannot_be_opened_again(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", 1.0)
    assert drive(run, quorum=1) is None
    assert [len(made["updates"]) for made in run.journal.events("aggregated")] == [2, 1, 2]
    with pytest.raises(UserMistake, match="its round is closed, the model was made without it. There are: none"):
        admissible(run.journal, ["site01:2"])


def test_what_an_open_round_was_told_is_withdrawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")

    def failed(task: int) -> None:
        fields = {"time_s": 0.0, "site": f"s{task}", "task": task, "reason": ""}
        journal.write("strategy_event", kind="SiteFailed", fields=fields)

    journal.write("aggregated", round=1, version=1)
    failed(3)
    journal.write("update_put_aside", site="s4", round=2, task=4, reason="")
    failed(4)
    failed(5)
    assert admissible(journal, ["s4:2"]) == [("s4", 2)]
    with pytest.raises(UserMistake, match=r"--admit s5:2: no update that waits to be let in. There are: s4:2"):
        admissible(journal, ["s5:2"])
    admit(journal, [("s4", 2)])
    assert [r["fields"]["task"] for r in recorded_events(journal)] == [3]
    assert next(journal.events("failures_forgotten"))["tasks"] == [4, 5]
    admit(journal, [("s4", 2)])  # a second time, after a crash
    assert [r["fields"]["task"] for r in recorded_events(journal)] == [3]


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(result) if isinstance(result, Exception) else future.set_result({"mean_loss": result})
    return future


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [(3.0, 4.0, True), (3.0, 4.01, False), (3.0, 1.0, True), (3.0, float("nan"), False), (3.0, float("inf"), False)],
)
def test_the_bound(before: float, after: float, counts: bool, tmp_path: Path) -> None:
    found = {"global": done(before), "a": done(after)}
    place: Any = mock.Mock(role="evaluation", label="evaluation")
    admission = Admission(1.0, Journal(tmp_path / "j"), {0: done(0.0)}, lambda who, _n, _m: found[who], place)
    action = Train(0, "a", 0, 1)
    assert admission.known(action, done(0.0), lambda: None)
    assert (admission.refusal(action, done(0.0)) is None) == counts


def test_an_update_that_cannot_be_evaluated_does_not_count(tmp_path: Path) -> None:
    waiting: Future[Any] = Future()
    found, called = {"global": done(1.0), "a": waiting}, []
    place: Any = mock.Mock(role="evaluation", label="evaluation", __str__=lambda _: "evaluation (here)")
    admission = Admission(1.0, Journal(tmp_path / "j"), {0: done(0.0)}, lambda who, _n, _m: found[who], place)
    action = Train(0, "a", 0, 1)
    assert not admission.known(action, done(0.0), lambda: called.append(1)) and not called
    waiting.set_exception(CrossfedError("the test set is gone"))
    assert called == [1] and admission.known(action, done(0.0), lambda: None)
    with pytest.raises(CrossfedError, match="evaluation .*the test set is gone"):
        admission.refusal(action, done(0.0))
