"""One campaign of a study: its settings, its result in plain values, and the folder that keeps it.

A result is named by the hash of its settings and of the code, so that a study that is asked for again, or was
interrupted, runs only what it does not have.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from apps.base.files import write_json
from workflows.strategies import AnySection
from workflows.studies.simulation.chemistry import ChemistryTasks
from workflows.studies.simulation.digits import Digits
from workflows.studies.simulation.engine import VirtualEngine
from workflows.studies.simulation.facility import machine_room
from workflows.studies.simulation.result import CampaignResult
from workflows.studies.simulation.scenarios import Scenario, jobs_of, waits_of

ProblemName = Literal["digits", "tasks"]
PROBLEMS: tuple[ProblemName, ...] = ("digits", "tasks")
CURVE_POINTS = 240
ENDLESS = 10**9  # versions: virtual campaigns end by their budget of seconds


@dataclass(frozen=True)
class StudyRun:
    """Everything that decides a result."""

    strategy: str  # the name in the tables
    section: str  # the strategy's settings, as JSON
    steps: int  # local steps an order
    scenario: Scenario
    sites: int
    alpha: float
    seed: int
    budget_s: float
    trace: str | None = None
    problem: ProblemName = "digits"

    def key(self, code: str) -> str:
        plain = {**asdict(self), "trace": trace_sha256(self.trace), "code": code}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]


@lru_cache
def trace_sha256(path: str | None) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def code_sha256() -> str:
    """Of the strategies, the virtual engine, and the split of the data; the training of the tasks has no part in it."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here.parents[1] / "strategies").glob("*.py")])
    files.append(here.parents[2] / "data" / "partition.py")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _jobs(scenario: Scenario, trace: str | None) -> Any:
    return jobs_of(scenario, Path(trace) if trace else None)


def play(run: StudyRun, target: float | None = None) -> CampaignResult:
    """The campaign itself; with a ``target`` it ends where the loss has come so low."""
    section = TypeAdapter(AnySection).validate_python(json.loads(run.section))
    waits = waits_of(run.scenario, run.sites, run.seed, _jobs(run.scenario, run.trace))
    kind = ChemistryTasks if run.problem == "tasks" else Digits
    problem = kind(run.sites, run.alpha, run.seed)
    room = machine_room(run.sites, run.seed)
    engine = VirtualEngine(section.strategy(ENDLESS, run.steps), room, waits, problem, run.seed)
    return engine.run(run.budget_s, target)


def played(run: StudyRun, folder: str, code: str) -> dict[str, Any]:
    """The result, from the folder if it is there; else it is made and kept."""
    path = Path(folder) / f"{run.key(code)}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        result = summary(run, play(run))
        write_json(path, result)
        return result


def summary(run: StudyRun, outcome: CampaignResult) -> dict[str, Any]:
    """An outcome in plain values: what the tables and pictures need."""
    last = outcome.points[-1].score
    accounts = outcome.accounts
    waits = [wait for account in accounts.values() for wait in account.wait_s]
    return {
        "run": asdict(run),
        "final_loss": last.loss,
        "final_accuracy": last.accuracy,
        "worst_task_loss": max(last.task_losses),
        "task_losses": last.task_losses,
        "steps": outcome.steps,
        "node_hours": outcome.node_hours,
        "wasted_node_hours": outcome.wasted_node_hours,
        "versions": outcome.points[-1].version,
        "failure": outcome.failure,
        "shares": outcome.shares,
        "staleness": sorted(Counter(outcome.staleness).items()),
        "lows": lows(outcome),
        "waits_s": waits[:500],
        "curve": thinned([(p.time_s, p.score.loss, p.score.accuracy) for p in outcome.points]),
        "site_curves": {name: thinned(account.losses) for name, account in accounts.items()},
    }


def lows(outcome: CampaignResult) -> list[tuple[float, float, float]]:
    """(time, loss, node-hours spent) whenever the global model was better than ever before."""
    best, found = math.inf, list[tuple[float, float, float]]()
    for point in outcome.points:
        if point.score.loss < best:
            best = point.score.loss
            found.append((point.time_s, best, point.node_hours))
    return found


def time_to(result: dict[str, Any], target: float) -> float | None:
    """When the global model first had this loss or less; None: never."""
    return next((time_s for time_s, loss, _ in result["lows"] if loss <= target), None)


def node_hours_to(result: dict[str, Any], target: float) -> float | None:
    """What had been spent when the global model first had this loss or less; None: never."""
    return next((hours for _, loss, hours in result["lows"] if loss <= target), None)


def thinned(points: list[Any]) -> list[Any]:
    """At most ``CURVE_POINTS`` of them, first and last among them."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    return [points[round(k * (len(points) - 1) / (CURVE_POINTS - 1))] for k in range(CURVE_POINTS)]
