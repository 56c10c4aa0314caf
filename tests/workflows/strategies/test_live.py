"""Every strategy on the live engine: real Parsl, real worker processes, a real model, started once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from campaigns import nano

from apps.artifacts.store import artifact_path, load_tensors
from workflows.dataflow.engine import Engine
from workflows.fl_round import federate
from workflows.globus.route import GlobusRoute
from workflows.planning.campaign_file import check_campaign, settle_dtype
from workflows.planning.plan import make_plan
from workflows.records.event_log import read_events, task_runs, trainings
from workflows.records.rounds import RoundReader
from workflows.records.run_directory import RunDirectory, open_new
from workflows.reporting.report import write_report
from workflows.runtime.block_failures import BlockFailureHandler
from workflows.runtime.kernel import Kernel, parsl_for
from workflows.strategies import SECTIONS, make_strategy
from workflows.strategies.base import Action, Aggregate, BlockStarted, Event, ServerRule
from workflows.studies.simulation.server import stepped

pytestmark = pytest.mark.campaign

SITES = {
    "aurora": {"config": "local", "tasks": ["chemical_reaction"]},
    "frontier": {"config": "local", "tasks": ["molecule_description"]},
    "polaris": {"config": "local", "tasks": ["name_conversion"]},
}
FAMILIES = ["chemical_reaction", "molecule_description", "name_conversion"]
STEP = {"rate": 0.003}  # of rules that step by the sign of the gradient, not by its size
TABLE: list[tuple[dict[str, Any], int]] = [
    ({"name": "fedavg"}, 2),
    ({"name": "fedprox", "mu": 0.1}, 2),
    ({"name": "fedavgm"}, 2),
    ({"name": "fedadagrad", **STEP}, 3),
    ({"name": "fedadam", **STEP}, 3),
    ({"name": "fedyogi", **STEP}, 3),
    ({"name": "fednova"}, 2),
    ({"name": "diloco"}, 2),
    ({"name": "fedasync", "alpha": 0.6}, 6),
    ({"name": "fedasync", "rho": 0.1, "late_binding": True}, 6),
    ({"name": "fedbuff", "buffer": 2}, 3),
    ({"name": "fedbuff", "buffer": 2, "momentum": 0.5, "late_binding": True}, 3),
    ({"name": "area"}, 6),
    ({"name": "fedcompass", "min_steps": 2, "max_steps": 4}, 3),
    ({"name": "fedqueue", "window_s": 2.0, "safety_s": 0.0, "warm_steps": 3}, 3),
    ({"name": "fedecho", "hold": 2.0}, 4),
    ({"name": "fedecho", "late_binding": False, "gather": False}, 4),
]


def planned(folder: Path, strategy: dict[str, Any], rounds: int, **changes: Any) -> tuple[Any, RunDirectory]:
    raw = nano(strategy=strategy, rounds=rounds, sites=SITES, data={"per_task": 8, "tasks": FAMILIES}, **changes)
    campaign, source = settle_dtype(check_campaign(raw, folder / "c.yaml")), folder / "c.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text("")
    run = open_new(folder / "run", campaign, source, [], None)
    return make_plan(campaign, run.path, source), run


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three sites' worker processes, with a Parsl that any campaign of theirs may use."""
    plan, run = planned(tmp_path_factory.mktemp("workers"), {"name": "fedavg"}, 1)
    with parsl_for(plan, run) as kernel:
        yield kernel.kernel
    run.close()


class Recording:
    """A strategy that records its events and aggregations."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.events: list[Event] = []
        self.made: list[Aggregate] = []

    def react(self, event: Event) -> list[Action]:
        self.events.append(event)
        actions: list[Action] = self.strategy.react(event)
        self.made += [action for action in actions if isinstance(action, Aggregate)]
        return actions


def play(workers: Any, folder: Path, strategy: dict[str, Any], rounds: int, **changes: Any) -> tuple[Engine, Recording]:
    plan, run = planned(folder, strategy, rounds, **changes)
    workers.wait_for_current_tasks()  # those that the campaign before had no use for any more
    workers.memoizer.journal, workers.memoizer.known, workers.memoizer.gone = run.journal, {}, set()
    patience = BlockFailureHandler(lambda site, failure: None)
    engine = Engine(plan, run, Kernel(workers, run, plan, GlobusRoute(), patience), lambda _: None)
    recording = Recording(make_strategy(plan.campaign.strategy, rounds, plan.campaign.training.steps))
    assert federate(recording, engine) is None
    run.journal.write("campaign_finished", rounds=rounds, seconds=0.0)
    return engine, recording


def tensors(engine: Engine, artifact: Any) -> dict[str, Any]:
    return load_tensors(artifact_path(engine.run.artifacts, artifact))


def assert_made_as_asked(engine: Engine, made: list[Aggregate]) -> None:
    """Compare each model with the one that the virtual server makes from the same files."""
    import numpy as np

    models = {v: tensors(engine, future.result()["artifact"]) for v, future in engine.models.items()}
    name = next(name for name, tensor in models[0].items() if tensor.ndim == 2)
    moments: dict[int, Any] = {}
    for action in made:
        parts = [
            (tensors(engine, engine.requests.updates[task].result()["artifact"])[name], w) for task, w in action.parts
        ]
        parts += [(models[version][name], weight) for version, weight in action.models]
        target = sum(weight * tensor.double().numpy() for tensor, weight in parts)
        if action.server is not None:
            base = models[action.base][name].double().numpy()
            target, moments[action.version] = stepped(base, target, action.server, moments.get(action.base, {}))
            assert set(engine.models[action.version].result()["state"]) == {"sha256", "nbytes", "kind"}
        assert np.abs(target - models[action.version][name].numpy()).max() < 2e-6


@pytest.mark.parametrize(("strategy", "rounds"), TABLE, ids=[f"{s['name']}-{len(s)}" for s, _ in TABLE])
def test_a_strategy_runs_to_its_end(workers: Any, tmp_path: Path, strategy: dict[str, Any], rounds: int) -> None:
    from transformers import AutoModelForCausalLM

    engine, recording = play(workers, tmp_path, strategy, rounds)
    journal = engine.run.journal
    records = list(journal.events("aggregated"))
    assert [r["version"] for r in records] == [r["round"] for r in records] == list(range(1, rounds + 1))
    for record in records:
        weights = [u["weight"] for u in record["updates"]] + list(record["models"].values())
        assert sum(weights) == pytest.approx(1.0)
        assert all(u["staleness"] >= 0 for u in record["updates"] if u["new"])
    assert_made_as_asked(engine, recording.made)
    shown = RoundReader(with_sites=True).read(journal.records)
    assert [row.number for row in shown] == list(range(rounds + 1))
    assert shown[-1].global_loss < shown[0].global_loss - 0.02
    done = [(r["site"], r["round"]) for r in journal.events("task_done") if r["app"] == "local_train"]
    assert len(done) == len(set(done))
    assert not list(journal.events("task_failed", "update_refused"))
    model = AutoModelForCausalLM.from_pretrained(engine.run.path / "model")
    (first,) = [r["result"] for r in journal.events("task_done") if r["app"] == "prepare"]
    assert model.num_parameters() == first["parameters"]
    assert_reported(engine, strategy["name"])


def assert_reported(engine: Engine, name: str) -> None:
    page = write_report(engine.run.path).read_text()
    assert f"strategy {name}" in page
    log = read_events(engine.run.path / "journal.jsonl")
    assert ("Staleness" in page) == (log.period == "version")
    runs = task_runs(log)
    assert {task.round for task in runs if task.app == "local_train"} <= set(range(1, engine.plan.campaign.rounds + 1))
    assert len(trainings(runs)) == sum(task.app == "local_train" for task in runs)


def test_the_table_has_every_strategy_that_a_campaign_takes() -> None:
    assert {strategy["name"] for strategy, _ in TABLE} | {"scaffold"} == set(SECTIONS)


def test_requested_blocks_are_reported_and_recorded(workers: Any, tmp_path: Path) -> None:
    engine, recording = play(workers, tmp_path, {"name": "fedbuff", "buffer": 3, "late_binding": True}, 2)
    begun = [event for event in recording.events if isinstance(event, BlockStarted)]
    assert sorted(event.site for event in begun) == sorted(SITES)  # one is enough for all requests of a site
    assert all(event.wait_s >= 0 and event.ends_s is None for event in begun)
    written = [r["fields"]["site"] for r in engine.run.journal.events("strategy_event") if r["kind"] == "BlockStarted"]
    assert written == [event.site for event in begun]
    assert sorted(engine.blocks.running) == sorted(SITES)


def test_a_round_of_participants(workers: Any, tmp_path: Path) -> None:
    engine, _ = play(workers, tmp_path, {"name": "fedavg", "participants": 2, "seed": 4}, 5)
    rounds = [r["weights"] for r in engine.run.journal.events("aggregated")]
    assert all(len(weights) == 2 and sum(weights.values()) == pytest.approx(1.0) for weights in rounds)
    assert len({tuple(sorted(weights)) for weights in rounds}) > 1  # not always the same ones
    asked = [(r["site"], r["round"]) for r in engine.run.journal.events("task_done") if r["app"] == "local_train"]
    assert sorted(asked) == sorted((site, number) for number, weights in enumerate(rounds, 1) for site in weights)


def test_the_proximal_term_reaches_the_sites(workers: Any, tmp_path: Path) -> None:
    """A strong pull to the start leaves less of a change."""
    norms = []
    for strategy in ({"name": "fedavg"}, {"name": "fedprox", "mu": 30.0}):
        training = {"steps": 8, "batch_size": 4, "learning_rate": 0.003}
        engine, _ = play(workers, tmp_path / strategy["name"], strategy, 1, training=training)
        done = [r["result"] for r in engine.run.journal.events("task_done") if r["app"] == "stage_in"]
        norms.append({result["manifest"]["site"]: result["update_norm"] for result in done})
    assert all(norms[1][site] < 0.9 * norms[0][site] for site in SITES)


def test_a_model_of_adapters_goes_through_a_server_rule(workers: Any, tmp_path: Path) -> None:
    adapted = {"source": "tiny", "tiny": {"width": 32, "layers": 1}, "adapter": {"method": "fedit", "rank": 2}}
    engine, recording = play(workers, tmp_path, {"name": "fedbuff", "buffer": 2, "momentum": 0.5}, 2, model=adapted)
    assert_made_as_asked(engine, recording.made)
    assert all(isinstance(action.server, ServerRule) for action in recording.made)
    assert (engine.run.path / "model" / "config.json").is_file()  # tiny weights come with their adapters in them
