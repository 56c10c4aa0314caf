"""The graph of the first round before it runs, drawn by the code that submits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from apps.base.identity import Place
from workflows.dataflow.round import RoundGraph
from workflows.globus.transfer.staging import GlobusStaging
from workflows.planning.plan import Plan
from workflows.records.round_graph import GraphTask, graph_lines, graph_of


class Recorder:
    """Takes the place of Parsl: records the calls of apps instead of submitting them; a task is its own future."""

    def __init__(self) -> None:
        self.tasks: list[GraphTask] = []

    def app(self, function: Callable[..., Any], on: str, **_: Any) -> Callable[..., GraphTask]:
        """Return what records a call of a function for an executor."""

        def record(place: Place, *args: Any, **_: Any) -> GraphTask:
            version = place["round"] if function.__name__ in ("prepare", "aggregate") else None
            depends = tuple(arg.key for arg in args if isinstance(arg, GraphTask))
            task = GraphTask(str(len(self.tasks)), function.__name__, place["site"], depends, on=on, version=version)
            self.tasks.append(task)
            return task

        return record


def first_round(plan: Plan) -> Iterator[str]:
    """Yield the first round of a plan as lines of text: every site trains, then one aggregation."""
    recorder = Recorder()
    graph = RoundGraph(plan, recorder.app, GlobusStaging)  # type: ignore[arg-type]  # its methods are only named
    model, request = graph.first_model(), Any
    updates = [graph.train_at(site, 1, request, model, graph.shard(site)).update for site in plan.sites]  # type: ignore[arg-type]
    made = graph.next_model(1, model, [1.0] * len(updates), (None, None), updates)
    graph.losses("global", 1, made)
    for site, update in zip(plan.sites if plan.campaign.evaluation.sites else (), updates, strict=False):
        graph.losses(site, 1, update)
    yield "# round 1 as a graph of Parsl apps [on which executor]:"
    yield from graph_lines(graph_of(made, recorder.tasks))
