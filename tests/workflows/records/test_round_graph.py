"""The graph of a round, read from the arrows in the journal."""

from __future__ import annotations

from typing import Any

from workflows.records.event_log import EventLog
from workflows.records.round_graph import graph_lines, last_round


def done(key: str, app: str, site: str, *depends: str, **result: Any) -> dict[str, Any]:
    task = {"app": app, "site": site, "key": key, "depends": list(depends), "result": result}
    return {"event": "task_done", "time": 10.0, "round": 1, "started": 8.0, "ended": 9.5, **task}


def site_tasks(site: str, model: str) -> list[dict[str, Any]]:
    return [
        done(f"enrol {site}", "enrol", site),
        done(f"out {site}", "stage_out", site, model, nbytes_moved=7),
        done(f"train {site}", "local_train", site, f"out {site}", f"enrol {site}", artifact={"nbytes": 5}),
        done(f"in {site}", "stage_in", site, f"train {site}", f"out {site}", nbytes_moved=5),
    ]


def journal() -> EventLog:
    """Two models; the second is made of one new update, one of the round before, and the model before."""
    events = [
        done("first", "prepare", "evaluator"),
        *site_tasks("a", "first"),
        *site_tasks("b", "first"),
        done("one", "aggregate", "server", "first", "in a", "in b", version=1, artifact={"nbytes": 9}),
        done("in old", "stage_in", "a", "first"),
        done("two", "aggregate", "server", "one", "in b", version=2, artifact={"nbytes": 9}),
        done("loss b", "evaluate", "evaluator", "in b"),
        done("loss", "evaluate", "evaluator", "two"),
    ]
    return EventLog(tuple(events))


def test_the_newest_model_and_what_it_is_made_of() -> None:
    graph = last_round(journal())
    assert graph is not None
    assert graph.aggregate.version == 2 and [base.version for base in graph.bases] == [0, 1]
    assert {site: [task.app for task in chain] for site, chain in graph.chains.items()} == {
        "b": ["stage_out", "local_train", "stage_in"]
    }
    assert [(task.seconds, task.nbytes) for task in graph.chains["b"]] == [(1.5, 7), (1.5, 5), (1.5, 5)]
    assert [task.key for task in graph.evaluations] == ["loss", "loss b"]


def test_a_run_without_models_or_without_arrows_has_no_graph() -> None:
    assert last_round(EventLog()) is None
    old = done("one", "aggregate", "server")
    del old["depends"]
    assert last_round(EventLog((old,))) is None


def test_as_text_the_sites_join_at_the_aggregation() -> None:
    graph = last_round(EventLog(journal().events[:10]))
    assert graph is not None
    assert graph_lines(graph) == [
        "model 0 ─ stage_out ─> local_train ─> stage_in ─┐",
        "model 0 ─ stage_out ─> local_train ─> stage_in ─┤",
        "┌───────────────────────────────────────────────┘",
        "└─> aggregate ─> model 1",
    ]
