"""One campaign of an algorithm study: its settings, its result as plain values, and the folder that keeps it.

A result is named by the hash of its settings and of the code, so that a repeated or interrupted study runs only the
campaigns without a result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from apps.base.files import write_json
from apps.base.own_packages import ROOT
from workflows.strategies import AnySection
from workflows.studies.simulation.chemistry import ChemistryTasks
from workflows.studies.simulation.digits import Digits
from workflows.studies.simulation.engine import VirtualEngine
from workflows.studies.simulation.facility import sample_facilities
from workflows.studies.simulation.result import CampaignResult
from workflows.studies.simulation.scenarios import Scenario, jobs_of, waits_of

CODE_FOLDERS = ("workflows/studies/simulation", "workflows/strategies")
CODE_FILES = (  # the data split, the server's formulas, and the reader of traces
    "apps/artifacts/server_optimizer.py",
    "data/partition.py",
    "workflows/studies/queues/sources.py",
    "workflows/studies/queues/swf.py",
)
ProblemName = Literal["digits", "tasks"]
PROBLEMS: tuple[ProblemName, ...] = get_args(ProblemName)
CURVE_POINTS = 240  # most points of a saved curve
ENDLESS = 10**9  # model versions: simulated campaigns end by their budget of seconds


@dataclass(frozen=True)
class StudyRun:
    """All settings that a result depends on."""

    strategy: str  # its name in the tables
    section: str  # the strategy's settings, as JSON
    steps: int  # local steps of a request
    scenario: Scenario
    sites: int
    alpha: float
    seed: int
    budget_s: float
    trace: str | None = None
    problem: ProblemName = "digits"

    def key(self, code: str) -> str:
        """Return the name of the result for a code hash."""
        plain = {**asdict(self), "trace": trace_sha256(self.trace), "code": code}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]


@lru_cache
def trace_sha256(path: str | None) -> str | None:
    """Return the hash of a trace's file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def code_sha256(root: Path = ROOT) -> str:
    """Return the hash of the files that decide a result, except the training of the chemistry tasks."""
    files = sorted(path for folder in CODE_FOLDERS for path in (root / folder).glob("*.py"))
    files += [root / name for name in CODE_FILES]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _jobs(scenario: Scenario, trace: str | None) -> Any:
    return jobs_of(scenario, Path(trace) if trace else None)


def run_campaign(run: StudyRun, target: float | None = None) -> CampaignResult:
    """Simulate a campaign; with a ``target`` it ends when the loss has reached it."""
    section = TypeAdapter(AnySection).validate_python(json.loads(run.section))
    waits = waits_of(run.scenario, run.sites, run.seed, _jobs(run.scenario, run.trace))
    kind = ChemistryTasks if run.problem == "tasks" else Digits
    problem = kind(run.sites, run.alpha, run.seed)
    facilities = sample_facilities(run.sites, run.seed)
    engine = VirtualEngine(section.strategy(ENDLESS, run.steps), facilities, waits, problem, run.seed)
    return engine.run(run.budget_s, target)


def cached_result(run: StudyRun, folder: str, code: str) -> dict[str, Any]:
    """Return the result of a campaign from the folder; simulate it and save the result if it is missing."""
    path = Path(folder) / f"{run.key(code)}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        result = summary(run, run_campaign(run))
        write_json(path, result)
        return result


def summary(run: StudyRun, result: CampaignResult) -> dict[str, Any]:
    """Return a result as plain values: all that the tables and figures need."""
    last = result.points[-1].score
    waits = [wait for usage in result.usage.values() for wait in usage.wait_s]
    return {
        "run": asdict(run),
        "final_loss": last.loss,
        "final_accuracy": last.accuracy,
        "worst_task_loss": max(last.task_losses),
        "task_losses": last.task_losses,
        "steps": result.steps,
        "node_hours": result.node_hours,
        "wasted_node_hours": result.wasted_node_hours,
        "versions": result.points[-1].version,
        "failure": result.failure,
        "shares": result.shares,
        "staleness": sorted(Counter(result.staleness).items()),
        "lows": lows(result),
        "waits_s": waits[:500],
        "curve": thinned([(p.time_s, p.score.loss, p.score.accuracy) for p in result.points]),
        "site_curves": {name: thinned(usage.losses) for name, usage in result.usage.items()},
    }


def lows(result: CampaignResult) -> list[tuple[float, float, float]]:
    """Return (time, loss, node-hours spent) of every global model that is better than all before it."""
    best, found = math.inf, list[tuple[float, float, float]]()
    for point in result.points:
        if point.score.loss < best:
            best = point.score.loss
            found.append((point.time_s, best, point.node_hours))
    return found


def time_to(result: dict[str, Any], target: float) -> float | None:
    """Return the time of the first global model with this loss or less, or None."""
    return next((time_s for time_s, loss, _ in result["lows"] if loss <= target), None)


def node_hours_to(result: dict[str, Any], target: float) -> float | None:
    """Return the node-hours spent until the first global model with this loss or less, or None."""
    return next((hours for _, loss, hours in result["lows"] if loss <= target), None)


def thinned(points: list[Any]) -> list[Any]:
    """Return at most ``CURVE_POINTS`` of the points, with the first and the last."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    return [points[round(k * (len(points) - 1) / (CURVE_POINTS - 1))] for k in range(CURVE_POINTS)]
