"""The four weathers of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from apps.errors import UserMistake
from workflows.virtual.draws import keyed
from workflows.virtual.facility import HOUR_S
from workflows.virtual.regimes import BUSY_WEATHER, RegimeWaits, busy_cell
from workflows.virtual.trace import Trace, read_trace, similar_jobs
from workflows.virtual.waits import CalmWaits, LogNormalWaits, ReplayedWaits, Waits

Scenario = Literal["calm", "lognormal", "bursty", "replay"]
SCENARIOS: tuple[Scenario, ...] = ("calm", "lognormal", "bursty", "replay")


def jobs_of(scenario: Scenario, trace: Path | None, walltime_s: float = HOUR_S) -> Trace | None:
    """The jobs that a replay takes its waits from; raises UserMistake without a trace."""
    if scenario != "replay":
        return None
    if trace is None:
        raise UserMistake("--scenario replay needs a trace", remedy="Add --trace FILE.swf or FILE.swf.gz")
    return similar_jobs(read_trace(trace), walltime_s)


def waits_of(scenario: Scenario, sites: int, seed: int, jobs: Trace | None) -> Waits:
    """The queues of all sites."""
    if scenario == "calm":
        return CalmWaits(seed)
    if scenario == "lognormal":
        means = tuple(HOUR_S * keyed(seed, "mean wait", site).uniform(0.25, 1.0) for site in range(sites))
        return LogNormalWaits(seed, means)
    if scenario == "bursty":
        return RegimeWaits(seed, [busy_cell()], BUSY_WEATHER)
    assert jobs is not None
    return ReplayedWaits(jobs, seed)
