"""The live engine with real Parsl and real files, tasks in threads and a trainer that does almost nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from benchmarks import orchestration as trainer

from apps import transfer
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.base.errors import CrossfedError, LossNotFinite, ModelNotFinite, StorageError, UserMistake
from apps.base.identity import Place
from workflows.dataflow import round as round_module
from workflows.dataflow import staging as staging_module
from workflows.dataflow.engine import Engine
from workflows.dataflow.replay import decode_event
from workflows.fl_round import federate
from workflows.planning.campaign import ChecksSection
from workflows.planning.plan import make_plan
from workflows.records.run_directory import RunDirectory, open_existing, open_new
from workflows.runtime import kernel as kernel_module
from workflows.runtime.stopping import stopped_by_trainings
from workflows.strategies import SECTIONS, make_strategy
from workflows.strategies.base import (
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    RobustRule,
    ServerRule,
    SetTimer,
    SiteFacts,
    SiteFailed,
    Stop,
    TimerFired,
    Train,
    UpdateArrived,
)
from workflows.strategies.fedavg import FedAvg, FedAvgSection

NAMES = ("prepare", "enrol", "local_train", "evaluate", "save_model")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    source = tmp_path / "campaign.yaml"
    source.write_text("")
    with (
        mock.patch.multiple(round_module, **{name: getattr(trainer, name) for name in NAMES}),
        mock.patch.object(kernel_module, "make_config", trainer.in_threads),
    ):
        yield open_new(tmp_path / "run", trainer.campaign_of(2, 3), source, [], None)


def drive(run: RunDirectory, strategy: Any, on_tick: Callable[[Engine], None] = lambda engine: None) -> str | None:
    plan = make_plan(trainer.campaign_of(2, 3), run.path, run.path / "campaign.yaml")
    with kernel_module.parsl_for(plan, run) as kernel:
        return federate(strategy, Engine(plan, run, kernel, on_tick))


def names(run: RunDirectory, app: str) -> list[tuple[str, int]]:
    return [(r["site"], r["round"]) for r in run.journal.events("task_done") if r["app"] == app]


def versions(run: RunDirectory) -> list[str]:
    return [r["result"]["artifact"]["sha256"] for r in run.journal.events("task_done") if r["app"] == "aggregate"]


def test_a_campaign_of_three_rounds(run: RunDirectory) -> None:
    assert drive(run, FedAvg(3, 1, "equal", None)) is None
    assert sorted(names(run, "local_train")) == [(s, n) for s in ("site00", "site01") for n in (1, 2, 3)]
    assert len(set(versions(run))) == 3
    assert [r["kind"] for r in run.journal.events("strategy_event")] == ["CampaignStarted"] + ["UpdateArrived"] * 6


def test_interrupted_at_any_tick_it_goes_on_to_the_same_models(run: RunDirectory, tmp_path: Path) -> None:
    drive(run, FedAvg(3, 1, "equal", None))
    expected = versions(run)
    again = open_new(tmp_path / "again", trainer.campaign_of(2, 3), tmp_path / "campaign.yaml", [], None)
    for events in (1, 3, 6):

        def interrupt(engine: Engine, events: int = events) -> None:
            if sum(1 for _ in engine.run.journal.events("strategy_event")) >= events:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(again, FedAvg(3, 1, "equal", None), interrupt)
        again.close()
        again = open_existing(again.path)
    assert drive(again, FedAvg(3, 1, "equal", None)) is None
    assert versions(again) == expected
    trained = names(again, "local_train")
    assert len(trained) == len(set(trained)) == 6


def test_an_update_that_goes_too_far_is_scaled_down_or_refused_and_a_resume_makes_the_same_models(
    run: RunDirectory, tmp_path: Path
) -> None:
    honest = trainer.local_train
    factors = {("site03", 1): 6.0, ("site03", 2): 1e20}

    def train(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        manifest, factor = honest(place, work, order, base, shard), factors.get((place["site"], place["round"]))
        if factor:
            tensors = load_tensors(artifact_path(base["store"], base["artifact"]))
            manifest["artifact"] = save_tensors(manifest["store"], {"w": tensors["w"] + 1e-3 * factor}, "update")
        return manifest

    campaign = trainer.campaign_of(4, 3).model_copy(update={"strategy": FedAvgSection(weights="equal", quorum=3)})

    def go(kept: RunDirectory, on_tick: Callable[[Engine], None] = lambda engine: None) -> str | None:
        plan = make_plan(campaign, kept.path, kept.path / "campaign.yaml")
        with mock.patch.object(round_module, "local_train", train), kernel_module.parsl_for(plan, kept) as kernel:
            return federate(FedAvg(3, 1, "equal", 3), Engine(plan, kept, kernel, on_tick))

    assert go(run) is None
    (clipped,) = run.journal.events("update_clipped")
    assert (clipped["site"], clipped["round"]) == ("site03", 1) and clipped["factor"] == pytest.approx(0.338, abs=1e-3)
    first, second, third = run.journal.events("aggregated")
    assert [update["clip"] for update in first["updates"]] == [1.0, 1.0, 1.0, clipped["factor"]]
    (refused,) = run.journal.events("update_refused")
    assert (refused["site"], refused["round"]) == ("site03", 2)
    assert "norm 3.162e+19, more than 10 times the largest that has counted, 0.64" in refused["reason"]
    assert [len(made["updates"]) for made in (second, third)] == [3, 4]
    again = open_new(tmp_path / "again", campaign, tmp_path / "campaign.yaml", [], None)
    for events in (3, 6, 9):

        def interrupt(engine: Engine, events: int = events) -> None:
            if sum(1 for _ in engine.run.journal.events("strategy_event")) >= events:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(again, interrupt)
        again.close()
        again = open_existing(again.path)
    assert go(again) is None
    assert versions(again) == versions(run)


def test_the_coefficients_of_a_robust_rule_are_in_the_journal(run: RunDirectory) -> None:
    plan = make_plan(trainer.campaign_of(5, 1), run.path, run.path / "campaign.yaml")
    strategy = FedAvg(1, 1, "equal", None, robust=RobustRule("krum", 1))
    with kernel_module.parsl_for(plan, run) as kernel:
        assert federate(strategy, Engine(plan, run, kernel, lambda _: None)) is None
    (made,) = (r["result"] for r in run.journal.events("task_done") if r["app"] == "aggregate")
    (chosen,) = (site for site, value in made["coefficients"].items() if value)
    assert made["coefficients"] == {f"site0{k}": float(f"site0{k}" == chosen) for k in range(5)}
    assert chosen in ("site01", "site02", "site03")  # the changes lie in a line, evenly: those between are alike
    update = next(r for r in run.journal.events("task_done") if (r["app"], r["site"]) == ("stage_in", chosen))
    assert made["artifact"]["sha256"] == update["result"]["artifact"]["sha256"]


def test_a_model_that_would_not_be_finite_ends_the_campaign_and_names_the_site(run: RunDirectory) -> None:
    def diverged(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        manifest = trainer.local_train(place, work, order, base, shard)
        if place == {"site": "site01", "round": 2}:
            values = {"w": torch.full((trainer.PARAMETERS,), 3e38)}
            manifest["artifact"] = save_tensors(manifest["store"], values, "update")
        return manifest

    checks = {"checks": ChecksSection(refuse_beyond=None)}
    plan = make_plan(trainer.campaign_of(2, 3).model_copy(update=checks), run.path, run.path / "campaign.yaml")
    with (
        mock.patch.object(round_module, "local_train", diverged),
        kernel_module.parsl_for(plan, run) as kernel,
        pytest.raises(
            ModelNotFinite, match=r"^server.*, round 2: model 2 .* of site01 \(norm .*Model 1 is kept"
        ) as told,
    ):
        federate(
            FedAvg(3, 1, "equal", None, server=ServerRule("adam", 0.1, 0.9, 0.99, 1e-3)),
            Engine(plan, run, kernel, lambda _: None),
        )
    assert "A resume would end here again" in str(told.value)
    assert [r["site"] for r in run.journal.events("task_failed")] == []
    assert len(versions(run)) == 1


def test_sites_keep_only_what_they_need_and_a_resume_does_nothing_again(run: RunDirectory, tmp_path: Path) -> None:
    drive(run, FedAvg(3, 1, "equal", None))
    expected = versions(run)
    again = open_new(tmp_path / "again", trainer.campaign_of(2, 3), tmp_path / "campaign.yaml", [], None)

    def interrupt(engine: Engine) -> None:
        if len(names(engine.run, "forget")) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(again, FedAvg(3, 1, "equal", None), interrupt)
    again.close()
    again = open_existing(again.path)
    assert drive(again, FedAvg(3, 1, "equal", None)) is None
    assert versions(again) == expected
    for app in ("local_train", "stage_out"):
        assert len(names(again, app)) == len(set(names(again, app))) == 6
    kept = {path.stem for way in ("in", "out") for path in (again.path / "sites" / "site00" / way).iterdir()}
    told = [r for r in again.journal.events("task_done") if r["site"] == "site00" and r["round"] == 1]
    first = {r["result"]["artifact"]["sha256"] for r in told if r["app"] in ("stage_out", "local_train")}
    assert len(first) == 2 and not first & kept


def test_an_update_whose_file_is_bad_is_asked_for_again(run: RunDirectory) -> None:
    attempts: list[int] = []

    def careless(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        manifest = trainer.local_train(place, work, order, base, shard)
        attempts.append(order["attempt"])
        if place == {"site": "site00", "round": 2} and order["attempt"] == 1:
            shutil.rmtree(manifest["store"], ignore_errors=True)
        return manifest

    with mock.patch.object(round_module, "local_train", careless):
        assert drive(run, FedAvg(3, 1, "equal", None)) is None
    assert attempts.count(2) == 1 and not list(run.journal.events("task_failed"))


def test_a_site_that_fails_for_good_is_reported_once_and_asked_again_by_the_next_driver(run: RunDirectory) -> None:
    def broken(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        if place["site"] == "site01":
            raise CrossfedError("the disk is gone", **place)
        return trainer.local_train(place, work, order, base, shard)

    with mock.patch.object(round_module, "local_train", broken):
        failure = drive(run, FedAvg(3, 1, "equal", None))
    assert failure == "round 1 has 1 of 2 updates and needs 2: site01: site site01, round 1: the disk is gone"
    assert [r["site"] for r in run.journal.events("task_failed")] == ["site01"]
    assert drive(run, FedAvg(3, 1, "equal", None)) is None
    assert sorted(names(run, "local_train")).count(("site00", 1)) == 1


def test_what_the_campaign_went_on_without_is_not_asked_for_again(run: RunDirectory) -> None:
    asked: list[int] = []

    def broken(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        if place["site"] == "site01":
            asked.append(place["round"])
            raise CrossfedError("the disk is gone", **place)
        return trainer.local_train(place, work, order, base, shard)

    with mock.patch.object(round_module, "local_train", broken):
        assert drive(run, FedAvg(3, 1, "equal", 1)) is None
        assert drive(run, FedAvg(4, 1, "equal", 1)) is None
    assert asked == [1, 2, 3, 4]


def test_a_failure_to_prepare_is_raised_as_it_is(run: RunDirectory) -> None:
    def broken(place: dict, work: dict) -> dict[str, Any]:
        raise CrossfedError("no such weights")

    with mock.patch.object(round_module, "prepare", broken), pytest.raises(CrossfedError, match="no such weights"):
        drive(run, FedAvg(3, 1, "equal", None))


def test_a_strategy_that_weighs_otherwise_at_a_resume_is_refused(run: RunDirectory) -> None:
    assert drive(run, FedAvg(3, 1, "equal", None)) is None

    class Changed(FedAvg):
        def react(self, event: Any) -> list[Any]:
            actions = super().react(event)
            return [
                replace(a, parts=((a.parts[0][0], 0.9), (a.parts[1][0], 0.1))) if isinstance(a, Aggregate) else a
                for a in actions
            ]

    before = versions(run)
    with pytest.raises(CrossfedError, match=r"makes model 1 with weights .*0\.9.*the journal records .*0\.5"):
        drive(run, Changed(3, 1, "equal", None))
    assert versions(run) == before


@pytest.mark.parametrize("broken_sites", [("site00", "site01"), ("site00",)])
def test_a_failure_that_could_not_be_withdrawn_is_withdrawn_by_the_next_driver(
    run: RunDirectory, broken_sites: tuple[str, ...]
) -> None:
    """The disk is full: the failure of a site is the last event in the journal, not that the driver gave up."""
    train = round_module.local_train

    def broken(place: Place, *arguments: Any) -> dict[str, Any]:
        if place["site"] in broken_sites:
            raise CrossfedError("the disk is full", **place)
        return train(place, *arguments)

    full = mock.patch.object(Engine, "give_up", side_effect=StorageError("the disk is full"))
    with mock.patch.object(round_module, "local_train", broken), full, pytest.raises(StorageError):
        drive(run, FedAvg(3, 1, "equal", None))
    run.journal.records = [
        r for r in run.journal.records if r["event"] != "strategy_event" or r["kind"] != "UpdateArrived"
    ]
    plan = make_plan(trainer.campaign_of(2, 3), run.path, run.path / "campaign.yaml")
    with kernel_module.parsl_for(plan, run) as kernel:
        first = Engine(plan, run, kernel, lambda engine: None)
        assert "the disk is full" in str(federate(FedAvg(3, 1, "equal", None), first))
        assert first.ended_by_earlier_failure()
        second = Engine(plan, run, kernel, lambda engine: None)
        assert federate(FedAvg(3, 1, "equal", None), second) is None and not second.ended_by_earlier_failure()
    assert len(versions(run)) == 3


class OneByOne:
    """An asynchronous strategy with a timer: takes each update as it comes, until its time is over."""

    def __init__(self) -> None:
        self.version = self.task = 0

    def order(self, site: str) -> Train:
        self.task += 1
        return Train(self.task, site, self.version, self.version + 1)

    def react(self, event: Any) -> list[Any]:
        match event:
            case CampaignStarted():
                return [SetTimer("end", event.time_s + 1.0), *(self.order(site.name) for site in event.sites)]
            case UpdateArrived():
                base, self.version = self.version, self.version + 1
                return [Aggregate(self.version, base, ((event.task, 1.0),)), self.order(event.site)]
            case TimerFired():
                return [Stop()]
        return []


def test_an_asynchronous_strategy_with_a_timer(run: RunDirectory) -> None:
    assert drive(run, OneByOne()) is None
    kinds = [r["kind"] for r in run.journal.events("strategy_event")]
    assert kinds[-1] == "TimerFired" and kinds.count("UpdateArrived") >= 3
    told = [r["version"] for r in run.journal.events("aggregated")]
    assert told == list(range(1, len(told) + 1))
    assert drive(run, OneByOne()) is None  # replayed: the timer does not fire a second time
    assert [r["kind"] for r in run.journal.events("strategy_event")] == kinds


ASYNCHRONOUS: list[dict[str, Any]] = [
    {"name": "fedbuff", "buffer": 2, "momentum": 0.5},
    {"name": "fedbuff", "buffer": 3, "late_binding": True},
    {"name": "fedasync"},
    {"name": "area"},
    {"name": "fedcompass", "min_steps": 1, "max_steps": 3},
    {"name": "fedqueue", "window_s": 0.2, "safety_s": 0.0, "warm_steps": 1},
    {"name": "fedecho", "hold": 0.2},
    {"name": "fedadam", "rate": 0.01},
]


def strategy_of(section: dict[str, Any], rounds: int) -> Any:
    kind = SECTIONS[section["name"]]
    return make_strategy(kind.model_validate(section), rounds, 1)


@pytest.mark.parametrize("section", [{"name": "fedavg"}, *ASYNCHRONOUS[:2]], ids=lambda s: f"{s['name']}-{len(s)}")
def test_a_driver_that_dies_while_a_site_is_tidied_has_lost_nothing(run: RunDirectory, section: dict[str, Any]) -> None:
    """The files are deleted, and the driver has no answer that says so."""
    tidied: list[str] = []

    def forget(place: Place, *args: Any) -> None:
        transfer.forget(place, *args)
        tidied.append(place["site"])
        raise CrossfedError("the driver is dead, the answer is lost")

    def interrupt(engine: Engine) -> None:
        if len(tidied) >= 3:
            raise KeyboardInterrupt

    with mock.patch.object(staging_module, "forget", forget), pytest.raises(KeyboardInterrupt):
        drive(run, strategy_of(section, 7), interrupt)
    run.close()
    run = open_existing(run.path)
    assert drive(run, strategy_of(section, 7)) is None
    for app in ("local_train", "stage_out"):
        assert len(names(run, app)) == len(set(names(run, app)))


@pytest.mark.parametrize("section", ASYNCHRONOUS, ids=lambda s: f"{s['name']}-{len(s)}")
def test_interrupted_at_any_tick_a_strategy_goes_on_with_its_own_history(
    run: RunDirectory, section: dict[str, Any]
) -> None:
    told: list[dict[str, Any]] = []
    for events in (1, 2, 4, 6):

        def interrupt(engine: Engine, events: int = events) -> None:
            if sum(1 for _ in engine.run.journal.events("strategy_event")) >= events:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(run, strategy_of(section, 7), interrupt)
        run.close()
        run = open_existing(run.path)
        assert list(run.journal.events("aggregated"))[: len(told)] == told
        told = list(run.journal.events("aggregated"))
    assert drive(run, strategy_of(section, 7)) is None
    assert [r["version"] for r in run.journal.events("aggregated")] == list(range(1, 8))
    made = [r["result"]["version"] for r in run.journal.events("task_done") if r["app"] == "aggregate"]
    assert sorted(made) == list(range(1, 8))
    trained = names(run, "local_train")
    assert len(trained) == len(set(trained))
    assert_the_clock_stood_still(run)


def assert_the_clock_stood_still(run: RunDirectory) -> None:
    """Times never go back, and are those of an observer who sleeps while no driver is there."""
    times = [r["fields"]["time_s"] for r in run.journal.events("strategy_event")]
    assert times == sorted(times)
    first, last = run.journal.records[0]["time"], run.journal.records[-1]["time"]
    assert times[-1] <= last - first


@pytest.mark.parametrize(
    "event",
    [
        CampaignStarted(0.5, (SiteFacts("a", 3), SiteFacts("b", 4))),
        UpdateArrived(1.0, "a", 2, "id", 3, 4, 5.0, 6.0),
        UpdateArrived(1.0, "a", 2, "id", 3, 4, 5.0, 6.0, 7),
        SiteFailed(1.0, "a", 2, "reason"),
        TimerFired(2.0, "end"),
        BlockStarted(3.0, "a", 60.0, None),
        BlockEnded(4.0, "a", "timeout"),
    ],
)
def test_events_survive_the_journal(event: Any) -> None:
    import json
    from dataclasses import asdict

    assert decode_event(type(event).__name__, json.loads(json.dumps(asdict(event)))) == event


@pytest.mark.parametrize(
    ("errors", "code", "advice"),
    [
        ([LossNotFinite, LossNotFinite], 1, "start a new run with a lower training.learning_rate"),
        ([UserMistake, UserMistake], 2, "What is done is kept in"),
        ([LossNotFinite, CrossfedError], 1, "--resume"),
        ([UserMistake, CrossfedError], 1, "--resume"),
    ],
)
def test_a_resume_is_advised_only_where_it_may_succeed(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], errors: list[type[CrossfedError]], code: int, advice: str
) -> None:
    def broken(place: dict, work: dict, order: dict, base: dict, shard: dict) -> dict[str, Any]:
        raise errors[place["site"] == "site01"]("it went wrong", **place)

    with mock.patch.object(round_module, "local_train", broken):
        failure = drive(run, FedAvg(3, 1, "equal", None))
    assert failure and stopped_by_trainings(run, failure) == code
    told = capsys.readouterr().err
    assert advice in told and ("--resume" in told) == (advice == "--resume")
    assert failure in run.journal.records[-1]["reason"] and run.journal.records[-1]["event"] == "driver_stopped"
