"""The graph of one round: its tasks and which results each one took, from the journal or from a preview."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflows.records.event_log import EventLog

ONCE = ("enrol", "save_model")  # apps that belong to the campaign, not to a round
MODELS = ("prepare", "aggregate")  # apps whose result is a global model


@dataclass(frozen=True)
class GraphTask:
    """One call of an app in a round.

    Attributes:
        key: identity of the call in its campaign.
        app: name of the app.
        site: the site it works for, ``server`` or ``evaluator``.
        depends: keys of the calls whose results it takes.
        on: label of its executor; empty where it is not known.
        seconds, nbytes: how long it ran, and the bytes that it moved or wrote; None for a preview.
        version: of the global model that it makes; None for other apps.
    """

    key: str
    app: str
    site: str
    depends: tuple[str, ...]
    on: str = ""
    seconds: float | None = None
    nbytes: int | None = None
    version: int | None = None


@dataclass(frozen=True)
class RoundGraph:
    """The tasks behind one global model.

    Attributes:
        bases: the tasks that made the models it starts from.
        chains: by site, its tasks in the order of execution.
        aggregate: the task that made the model.
        evaluations: of the model first, then of its updates.
    """

    bases: tuple[GraphTask, ...]
    chains: dict[str, tuple[GraphTask, ...]]
    aggregate: GraphTask
    evaluations: tuple[GraphTask, ...]


def last_round(journal: EventLog) -> RoundGraph | None:
    """Return the graph of the newest model; None if no model was aggregated, or by code that recorded no arrows."""
    tasks = {task.key: task for task in _tasks(journal)}
    made = [task for task in tasks.values() if task.app == "aggregate" and task.depends]
    return graph_of(made[-1], tasks.values()) if made else None


def graph_of(aggregate: GraphTask, tasks: Iterable[GraphTask]) -> RoundGraph:
    """Return the graph around one aggregation.

    Args:
        aggregate: one of ``tasks``.
        tasks: of a campaign, in the order in which they finished.
    """
    known = {task.key: task for task in tasks}
    taken = _ancestors(aggregate, known)
    chains: dict[str, list[GraphTask]] = {}
    for task in (task for key, task in known.items() if key in taken):
        if task.app not in (*ONCE, *MODELS):
            chains.setdefault(task.site, []).append(task)
    updates = {key for key in aggregate.depends if key in known and known[key].app not in MODELS}
    scored = (aggregate.key, *updates)
    evaluations = [t for t in known.values() if t.app == "evaluate" and t.depends and t.depends[0] in scored]
    return RoundGraph(
        bases=tuple(task for key, task in known.items() if key in taken and task.app in MODELS),
        chains={site: tuple(chain) for site, chain in chains.items()},
        aggregate=aggregate,
        evaluations=tuple(sorted(evaluations, key=lambda task: scored.index(task.depends[0]))),
    )


def _ancestors(aggregate: GraphTask, known: dict[str, GraphTask]) -> set[str]:
    """Return the keys of the tasks that an aggregation needs, up to the models that they start from."""
    found: set[str] = set()
    open_keys = list(aggregate.depends)
    while open_keys:
        key = open_keys.pop()
        if key in found or key not in known:
            continue
        found.add(key)
        if known[key].app not in MODELS:
            open_keys.extend(known[key].depends)
    return found


def _tasks(journal: EventLog) -> Iterable[GraphTask]:
    for event in journal.named("task_done"):
        result = event.get("result") or {}
        artifact = result.get("artifact") or {}
        started, ended = event.get("started"), event.get("ended")
        app = str(event.get("app"))
        yield GraphTask(
            key=str(event.get("key")),
            app=app,
            site=str(event.get("site")),
            depends=tuple(event.get("depends") or ()),
            seconds=None if started is None or ended is None else float(ended) - float(started),
            nbytes=result.get("nbytes_moved", artifact.get("nbytes")) if app != "evaluate" else None,
            version=result.get("version", 0 if app == "prepare" else None),
        )


def graph_lines(graph: RoundGraph) -> list[str]:
    """Draw a graph as text: a line for each site, joined at the aggregation."""
    start = f"model {graph.bases[-1].version}" if graph.bases else "model"
    rows = [f"{start} ─ {_joined(chain)} ─" for chain in graph.chains.values()]
    width = max(map(len, rows), default=0)
    lines = [f"{row:─<{width}s}{'┐' if row is rows[0] else '┤'}" for row in rows]
    scores = f" ─> {len(graph.evaluations)} x {_label(graph.evaluations[0])}" if graph.evaluations else ""
    end = f"└─> {_label(graph.aggregate)} ─> model {graph.aggregate.version}{scores}"
    return [*lines, f"┌{'':─<{width - 1}s}┘", end]


def _joined(chain: Sequence[GraphTask]) -> str:
    return " ─> ".join(map(_label, chain))


def _label(task: GraphTask) -> str:
    return f"{task.app} [{task.on}]" if task.on else task.app
