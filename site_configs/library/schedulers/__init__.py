"""Queries to batch schedulers: states of jobs, jobs of this user, problems of queues and accounts."""

from __future__ import annotations

from collections.abc import Mapping

from site_configs.library.schedulers.base import GONE, LIVE, UNKNOWN, Answer, JobFacts, JobState, NoFacts, Scheduler
from site_configs.library.schedulers.commands import missing_commands
from site_configs.library.schedulers.pbs import Pbs
from site_configs.library.schedulers.slurm import Slurm
from site_configs.library.site import SchedulerKind

__all__ = [
    "GONE",
    "LIVE",
    "UNKNOWN",
    "Answer",
    "JobFacts",
    "JobState",
    "NoFacts",
    "Scheduler",
    "absent_commands",
    "scheduler_for",
]

COMMANDS: Mapping[SchedulerKind, tuple[str, ...]] = {
    "slurm": ("sbatch", "squeue", "scancel"),
    "pbs": ("qsub", "qstat", "qselect", "qdel"),
}


def absent_commands(kind: SchedulerKind, environment: Mapping[str, str]) -> list[str]:
    """Return the scheduler's commands that are not on PATH; arguments as for ``scheduler_for``."""
    return missing_commands(COMMANDS[kind], environment)


def scheduler_for(kind: SchedulerKind, environment: Mapping[str, str]) -> Scheduler:
    """Return the scheduler whose commands are on PATH.

    Args:
        kind: kind of the scheduler.
        environment: variables of the commands, in addition to those of this process.
    """
    return Slurm(environment) if kind == "slurm" else Pbs(environment)
