"""Asking batch schedulers: what became of a job, which jobs are ours, whether a queue takes any."""

from __future__ import annotations

from collections.abc import Mapping

from site_configs.library.schedulers.base import GONE, LIVE, UNKNOWN, Answer, JobFacts, JobState, NoFacts, Scheduler
from site_configs.library.schedulers.pbs import Pbs
from site_configs.library.schedulers.slurm import Slurm
from site_configs.library.site import SchedulerKind

__all__ = ["GONE", "LIVE", "UNKNOWN", "Answer", "JobFacts", "JobState", "NoFacts", "Scheduler", "scheduler_for"]


def scheduler_for(kind: SchedulerKind, environment: Mapping[str, str]) -> Scheduler:
    """The scheduler whose commands are on PATH.

    Args:
        kind: whose commands those are.
        environment: variables for the commands, over those of this process.
    """
    return Slurm(environment) if kind == "slurm" else Pbs(environment)
