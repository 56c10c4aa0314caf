"""The four queue scenarios of the algorithm study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from apps.base.errors import UserMistake
from workflows.console.units import HOUR_S
from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.queue_regimes import BUSY_REGIMES, RegimeWaits, busy_cell
from workflows.studies.simulation.trace import Trace, machine_traces
from workflows.studies.simulation.waits import CalmWaits, LogNormalWaits, MachineWaits, ReplayedWaits, Waits

Scenario = Literal["calm", "lognormal", "bursty", "replay"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


def jobs_of(scenario: Scenario, trace: Path | None, walltime_s: float = HOUR_S) -> tuple[Trace, ...]:
    """Return the jobs of each machine whose waits a replay uses; none for the other scenarios.

    Raises:
        UserMistake: a replay without a trace, or one that cannot be used.
    """
    if scenario != "replay":
        return ()
    if trace is None:
        raise UserMistake(
            "--scenario replay needs a trace",
            remedy="Add --trace FILE.swf, FILE.swf.gz, or history for the waits of your own blocks",
        )
    return machine_traces(trace, walltime_s)


def waits_of(scenario: Scenario, sites: int, seed: int, jobs: Sequence[Trace] = ()) -> Waits:
    """Return the queues of all sites."""
    if scenario == "calm":
        return CalmWaits(seed)
    if scenario == "lognormal":
        means = tuple(HOUR_S * keyed(seed, "mean wait", site).uniform(0.25, 1.0) for site in range(sites))
        return LogNormalWaits(seed, means)
    if scenario == "bursty":
        return RegimeWaits(seed, [busy_cell()], BUSY_REGIMES)
    return MachineWaits(tuple(ReplayedWaits(machine, seed) for machine in jobs))
