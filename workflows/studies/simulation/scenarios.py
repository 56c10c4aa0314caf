"""The four weathers of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from apps.base.errors import UserMistake
from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.facility import HOUR_S
from workflows.studies.simulation.queue_regimes import BUSY_WEATHER, RegimeWaits, busy_cell
from workflows.studies.simulation.trace import Trace, machine_traces
from workflows.studies.simulation.waits import CalmWaits, LogNormalWaits, MachineWaits, ReplayedWaits, Waits

Scenario = Literal["calm", "lognormal", "bursty", "replay"]
SCENARIOS: tuple[Scenario, ...] = ("calm", "lognormal", "bursty", "replay")


def jobs_of(scenario: Scenario, trace: Path | None, walltime_s: float = HOUR_S) -> tuple[Trace, ...]:
    """The jobs of each machine that a replay takes its waits from; raises UserMistake without a trace."""
    if scenario != "replay":
        return ()
    if trace is None:
        raise UserMistake(
            "--scenario replay needs a trace",
            remedy="Add --trace FILE.swf, FILE.swf.gz, or history for the waits of your own blocks",
        )
    return machine_traces(trace, walltime_s)


def waits_of(scenario: Scenario, sites: int, seed: int, jobs: Sequence[Trace] = ()) -> Waits:
    """The queues of all sites."""
    if scenario == "calm":
        return CalmWaits(seed)
    if scenario == "lognormal":
        means = tuple(HOUR_S * keyed(seed, "mean wait", site).uniform(0.25, 1.0) for site in range(sites))
        return LogNormalWaits(seed, means)
    if scenario == "bursty":
        return RegimeWaits(seed, [busy_cell()], BUSY_WEATHER)
    return MachineWaits(tuple(ReplayedWaits(machine, seed) for machine in jobs))
