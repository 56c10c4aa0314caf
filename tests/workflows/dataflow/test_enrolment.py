"""A site that is lost before it has enrolled, with the real engine, Parsl and files, tasks in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from benchmarks import orchestration as trainer
from parsl.executors.high_throughput.errors import ManagerLost
from patience import patience, wait_until

from apps.base.errors import CrossfedError, SiteMistake, StorageError, UserMistake, VersionMismatch, WorkersLost
from workflows.dataflow import enrolment
from workflows.dataflow import round as round_module
from workflows.dataflow.engine import Engine
from workflows.fl_round import federate
from workflows.planning.plan import make_plan
from workflows.records.run_directory import RunDirectory, open_new
from workflows.reporting.problem_lines import problem_text
from workflows.runtime import kernel as kernel_module
from workflows.runtime.block_failures import BlocksFailed
from workflows.strategies import SECTIONS, make_strategy

NAMES = ("prepare", "enrol", "local_train", "evaluate", "save_model")
SITES, ROUNDS = ("site00", "site01", "site02"), 3
SAMPLES = {"site00": 10, "site01": 20, "site02": 30}
LOST = WorkersLost("its endpoint has lost its workers", site="site02")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    source = tmp_path / "campaign.yaml"
    source.write_text("")
    with (
        mock.patch.multiple(round_module, **{name: getattr(trainer, name) for name in NAMES}),
        mock.patch.object(kernel_module, "make_config", trainer.in_threads),
    ):
        yield open_new(tmp_path / "run", trainer.campaign_of(len(SITES), ROUNDS), source, [], None)


def drive(
    run: RunDirectory, answer: Callable[[str], Exception | None], on_tick: Any = lambda engine: None, **section: Any
) -> str | None:
    """Run one driver to its end; return why the campaign could not be finished, or None.

    Args:
        run: the run directory.
        answer: error of the enrolment at a site, or None.
        on_tick: called with the engine at each tick.
        **section: settings of the strategy.
    """

    def enrol(place: dict, work: dict) -> dict[str, Any]:
        error = answer(place["site"])
        if error is not None:
            raise error
        return {**trainer.enrol(place, work), "samples": SAMPLES[place["site"]]}

    named = SECTIONS[section.get("name", "fedavg")].model_validate({"name": "fedavg", **section})
    campaign = trainer.campaign_of(len(SITES), ROUNDS).model_copy(update={"strategy": named})
    plan = make_plan(campaign, run.path, run.path / "campaign.yaml")
    with mock.patch.object(round_module, "enrol", enrol), kernel_module.parsl_for(plan, run) as kernel:
        return federate(make_strategy(named, ROUNDS, 1), Engine(plan, run, kernel, on_tick))


def at_first(error: Exception, times: int) -> Callable[[str], Exception | None]:
    """The last site fails so many times."""
    left = [error] * times
    return lambda site: left.pop() if site == "site02" and left else None


def weights(run: RunDirectory) -> list[dict[str, float]]:
    return [r["weights"] for r in run.journal.events("aggregated")]


def trained(run: RunDirectory) -> list[tuple[str, int]]:
    done = [r for r in run.journal.events("task_done") if r["app"] == "local_train"]
    return sorted((r["site"], r["round"]) for r in done)


@pytest.mark.parametrize("loss", [LOST, BlocksFailed("10 blocks in a row"), ManagerLost(b"m", "node1")], ids=repr)
def test_the_others_begin_without_a_lost_site_and_it_joins_when_it_is_back(run: RunDirectory, loss: Exception) -> None:
    assert drive(run, at_first(loss, 2), quorum=2) is None
    two, all_three = {"site00": 1 / 3, "site01": 2 / 3}, {"site00": 1 / 6, "site01": 1 / 3, "site02": 1 / 2}
    assert [pytest.approx(w) for w in (two, all_three, all_three)] == weights(run)
    assert ("site02", 1) not in trained(run) and ("site02", 2) in trained(run)
    enrolment, first_round = run.journal.events("task_failed")
    assert (enrolment["app"], enrolment["site"], enrolment["round"]) == ("enrol", "site02", 0)
    said = problem_text(enrolment)
    assert said is not None and said.startswith("site site02: ")
    assert said.endswith("; the others begin without it, and it is asked again")
    assert (first_round["app"], first_round["site"], first_round["round"]) == ("local_train", "site02", 1)


def test_a_site_that_is_back_for_the_first_round_misses_nothing(run: RunDirectory) -> None:
    assert drive(run, at_first(LOST, 1), quorum=2) is None
    assert trained(run) == sorted((site, n) for site in SITES for n in range(1, ROUNDS + 1))
    assert [sorted(w.values()) for w in weights(run)] == [[pytest.approx(n / 6) for n in (1, 2, 3)]] * ROUNDS


def test_without_the_quorum_nothing_begins_and_a_resume_does(run: RunDirectory) -> None:
    with pytest.raises(CrossfedError) as raised:
        drive(run, at_first(LOST, 9))
    assert str(raised.value) == (
        "site site02: its endpoint has lost its workers; 2 of 3 sites are available and 3 are needed. "
        "Resume when it is available again"
    )
    assert trained(run) == [] and not list(run.journal.events("strategy_event"))
    assert drive(run, lambda site: None) is None
    assert len(trained(run)) == len(SITES) * ROUNDS


def test_a_mistake_of_the_request_is_reported_before_anything_trains_whatever_the_quorum(run: RunDirectory) -> None:
    with pytest.raises(UserMistake, match="there are no records"):
        drive(run, at_first(UserMistake("there are no records", site="site02"), 1), quorum=1)
    assert trained(run) == []


@pytest.mark.parametrize("kind", [StorageError, VersionMismatch, SiteMistake])
def test_what_is_wrong_at_a_site_ends_that_site_alone_if_the_others_suffice(run: RunDirectory, kind: Any) -> None:
    assert drive(run, lambda site: kind("other code", site=site) if site == "site02" else None, quorum=2) is None
    assert {site for site, _ in trained(run)} == {"site00", "site01"} and len(weights(run)) == ROUNDS
    assert {(r["site"], r["round"]) for r in run.journal.events("task_failed")} == {("site02", n) for n in range(4)}


@pytest.mark.parametrize("kind", [StorageError, VersionMismatch, SiteMistake])
def test_what_is_wrong_at_a_site_that_is_needed_is_reported_before_anything_trains(
    run: RunDirectory, kind: Any
) -> None:
    with pytest.raises(kind, match="other code"):
        drive(run, lambda site: kind("other code", site=site) if site == "site02" else None)
    assert trained(run) == []


def test_a_mistake_is_reported_while_others_still_queue(run: RunDirectory) -> None:
    """Their threads may not wait for anything that this driver does: it waits for them when it ends."""
    answered = threading.Event()

    def answer(site: str) -> Exception | None:
        if site == "site00":
            answered.set()
            return UserMistake("there are no records")
        answered.wait(patience(10))
        time.sleep(1)
        return None

    with pytest.raises(UserMistake):
        drive(run, answer)
    assert answered.is_set() and trained(run) == []


def test_a_mistake_counts_more_than_a_loss(run: RunDirectory) -> None:
    answers = {"site00": LOST, "site01": UserMistake("there are no records")}
    with pytest.raises(UserMistake):
        drive(run, answers.get)


def test_a_strategy_without_rounds_takes_whoever_comes(run: RunDirectory) -> None:
    assert drive(run, at_first(LOST, 1), name="fedasync") is None
    lost = {"site00", "site01", "site02"}
    with pytest.raises(CrossfedError, match="0 of 3 sites are available and 1 are needed"):
        fresh = open_new(
            run.path.parent / "again", trainer.campaign_of(3, ROUNDS), run.path / "campaign.yaml", [], None
        )
        drive(fresh, lambda site: LOST if site in lost else None, name="fedasync")


def test_a_campaign_that_began_without_a_site_is_resumed_to_the_same_models(run: RunDirectory, tmp_path: Path) -> None:
    """The number of the site's samples reaches the journal with its first update."""
    assert drive(run, at_first(LOST, 2), quorum=2) is None
    again = open_new(tmp_path / "again", trainer.campaign_of(3, ROUNDS), tmp_path / "campaign.yaml", [], None)

    def interrupt(engine: Engine) -> None:
        if len(list(engine.run.journal.events("aggregated"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(again, at_first(LOST, 2), interrupt, quorum=2)
    assert drive(again, lambda site: None, quorum=2) is None
    made = [
        [r["result"]["artifact"]["sha256"] for r in each.journal.events("task_done") if r["app"] == "aggregate"]
        for each in (run, again)
    ]
    assert made[0] == made[1] and len(made[0]) == ROUNDS
    assert len(trained(again)) == len(set(trained(again)))


def test_a_site_that_still_queues_is_not_waited_for(run: RunDirectory, monkeypatch: Any) -> None:
    """It enrols when its job starts, here once the others have made the first model without it."""
    monkeypatch.setattr(enrolment, "GATHER_S", patience(0.2))

    def answer(site: str) -> None:
        if site == "site02":
            wait_until(lambda: weights(run), 10)

    assert drive(run, answer, quorum=2, deadline_s=0.5) is None
    assert weights(run)[0] == pytest.approx({"site00": 1 / 3, "site01": 2 / 3})
    (started,) = (r["fields"] for r in run.journal.events("strategy_event") if r["kind"] == "CampaignStarted")
    assert [site["samples"] for site in started["sites"]] == [10, 20, 0]
    assert ("site02", 1) in trained(run)
    assert not list(run.journal.events("task_failed"))


def test_a_mistake_at_a_site_that_starts_later_is_reported_then(run: RunDirectory, monkeypatch: Any) -> None:
    monkeypatch.setattr(enrolment, "GATHER_S", patience(0.2))

    def answer(site: str) -> Exception | None:
        if site != "site02":
            return None
        wait_until(lambda: list(run.journal.events("strategy_event")), 10)
        return UserMistake("there are no records", site=site)

    ended = drive(run, answer)
    assert ended is not None and "round 1 has 2 of 3 updates and needs 3: site02: " in ended
    assert "there are no records" in ended
    assert drive(run, lambda site: None) is None  # mended
    assert len(trained(run)) == len(set(trained(run))) == len(SITES) * ROUNDS


def test_sites_that_come_within_the_grace_are_known_from_the_start(run: RunDirectory) -> None:
    def answer(site: str) -> None:
        time.sleep(0.5 if site == "site02" else 0.0)

    assert drive(run, answer) is None
    assert [sorted(w.values()) for w in weights(run)] == [[pytest.approx(n / 6) for n in (1, 2, 3)]] * ROUNDS
    (started,) = (r["fields"] for r in run.journal.events("strategy_event") if r["kind"] == "CampaignStarted")
    assert [site["samples"] for site in started["sites"]] == [10, 20, 30]
