"""Parsl's Slurm and PBS Pro providers, tamed: silence is never taken for an end, no block is submitted twice.

Parsl's own classes write the scripts and submit them. What they know of a job afterwards decays: they poll once a
minute whatever is asked, turn a job that a query does not show into a completed one, and forget a submission whose
answer was lost. These questions go to ``site_configs.library.schedulers`` here.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from parsl.jobs.states import JobState, JobStatus
from parsl.launchers.base import Launcher
from parsl.providers import PBSProProvider, SlurmProvider
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException

from site_configs.library.queues import format_walltime
from site_configs.library.schedulers import GONE, UNKNOWN, Answer, JobFacts, Scheduler, scheduler_for
from site_configs.library.site import Block

SHORTEST_POLL_S = 1
NO_ANSWER = 124  # as the command "timeout" has it
LOST_S = 600.0  # a submission without an answer is looked for so long
SETTLE_S = 60.0  # a scheduler may need so long until it shows a job that it has taken
OUTER_JOB = ("SBATCH_", "SLURM_", "SRUN_")  # sbatch takes these over its script, or hands them to the new job
# Parsl counts failures and gives up after some; a block whose time is over or whose nodes are taken is none
STATES: Mapping[str, JobState] = {
    "pending": JobState.PENDING,
    "running": JobState.RUNNING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "node_fail": JobState.FAILED,
    "out_of_memory": JobState.FAILED,
    "timeout": JobState.TIMEOUT,
    "preempted": JobState.TIMEOUT,
    "cancelled": JobState.CANCELLED,
}
logger = logging.getLogger(__name__)


class StatusAwareProvider(ClusterProvider):
    """What both providers do otherwise than Parsl's own; stands before these in the order of classes.

    Attributes:
        block: the batch job.
        job_prefix: the names of the jobs begin with it; make it unique to the campaign, then its jobs can be found.
        scheduler: answers what became of them.
        tasks_per_node: ranks that a node of the block is asked for.
        poll_s: seconds between questions.
        told_to_end: ids of the jobs whose end was asked for here; any other that is cancelled, somebody else has ended.
    """

    block: Block
    job_prefix: str = "crossfed"
    scheduler: Scheduler
    tasks_per_node: int = 1
    poll_s: int = 60
    told_to_end: set[str]

    def _tame(self, block: Block, job_prefix: str, tasks_per_node: int, poll_s: int) -> None:
        self.block, self.job_prefix = block, job_prefix
        self.tasks_per_node, self.poll_s = tasks_per_node, poll_s
        self.scheduler = scheduler_for(block.scheduler, block.command_environment)
        self._lost: dict[str, float] = {}  # names of jobs whose submission was not answered, and when
        self._unseen: dict[str, float] = {}  # jobs that no answer has shown yet, and when they were submitted
        self.told_to_end = set()
        self._said: tuple[int, str, str] = (0, "", "")  # the last command's exit code and words

    @property
    def status_polling_interval(self) -> int:
        return max(self.poll_s, SHORTEST_POLL_S)

    def submit(self, command: str, tasks_per_node: int, job_name: str = "") -> str:
        """Submit a block and tell its job id; the name of the job is ``job_prefix`` and a unique end.

        Raises:
            SubmitException: refused, with the scheduler's words; or not answered, and not found by its name.
        """
        self._settle_lost()
        name = f"{self.job_prefix}-{secrets.token_hex(4)}"
        try:
            job_id = super().submit(command, self.tasks_per_node, name)  # type: ignore[safe-super]
        except SubmitException:
            job_id = None
        job_id = str(job_id) if job_id else self._find_submitted(name)
        self._unseen[job_id] = time.monotonic()
        return job_id

    def _find_submitted(self, name: str) -> str:
        """The job of a submission that failed, if it was taken after all."""
        code, out, error = self._said
        found = self.scheduler.find(name)
        if found:
            logger.warning("%s was submitted though the answer was lost: job %s", name, found[0].job_id)
            script = Path(self.script_dir or ".") / found[0].name
            paths = {"job_stdout_path": f"{script}.stdout", "job_stderr_path": f"{script}.stderr"}
            self.resources[found[0].job_id] = {
                "job_id": found[0].job_id,
                "status": JobStatus(JobState.PENDING),
                **paths,
            }
            return found[0].job_id
        if found is None or code in (0, NO_ANSWER):
            self._lost[name] = time.monotonic()
        what = (error or out).strip() or "no job id in the answer"
        raise NotSubmitted(name, what, stdout=out, stderr=error, retcode=code)

    def _settle_lost(self) -> None:
        """End jobs that came to be after their submission had been given up: Parsl has forgotten their blocks."""
        for name, since in list(self._lost.items()):
            found = self.scheduler.find(name)
            if found is None:
                raise NotSubmitted(name, f"the scheduler does not say whether this earlier job was taken: {name}")
            cancelled = all(self.cancel([facts.job_id for facts in found]))
            if (found and cancelled) or (not found and time.monotonic() - since > LOST_S):
                del self._lost[name]

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        """Run a command of the scheduler in the block's environment.

        One that does not answer in time is ended, so that it cannot act later, and gives ``NO_ANSWER``.
        """
        limit_s = timeout or self.cmd_timeout
        hidden = [name for name in os.environ if name.startswith(OUTER_JOB) and name != "SLURM_CONF"]
        values = [f"{name}={value}" for name, value in self.block.command_environment.items()]
        process = subprocess.Popen(
            ["env", *(word for name in hidden for word in ("-u", name)), *values, *shlex.split(cmd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=limit_s)
            self._said = process.returncode, out, error
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self._said = NO_ANSWER, "", f"no answer within {limit_s} s: {cmd}"
        return self._said

    def _status(self) -> None:
        """Ask for the jobs that have not ended; one without a clear answer keeps its state."""
        living = [job_id for job_id, job in list(self.resources.items()) if not job["status"].terminal]
        for job_id, answer in self.scheduler.jobs([str(job_id) for job_id in living]).items():
            too_soon = answer is GONE and time.monotonic() - self._unseen.get(job_id, -SETTLE_S) < SETTLE_S
            if answer is UNKNOWN or too_soon:
                continue
            self._unseen.pop(job_id, None)
            self._set(job_id, *parsl_state(answer))

    def _set(self, job_id: str, state: JobState, message: str | None = None) -> None:
        job = self.resources[job_id]
        job["status"] = JobStatus(
            state, message=message, stdout_path=job["job_stdout_path"], stderr_path=job["job_stderr_path"]
        )

    def cancel(self, job_ids: Sequence[Any]) -> list[bool]:
        """End jobs; True for those that have been told to end or are gone."""
        if not job_ids:
            return []
        self.told_to_end |= {str(job_id) for job_id in job_ids}  # first: who watches the jobs may see them end at once
        left = self.scheduler.cancel([str(job_id) for job_id in job_ids])
        for job_id in job_ids:
            if job_id in self.resources and job_id not in left:
                self._set(job_id, JobState.CANCELLED)
        return [job_id not in left for job_id in job_ids]

    def render(self, command: str) -> str:
        """The script that Parsl would submit for a command, and under it how; asks no scheduler.

        Args:
            command: starts the worker pool.
        """
        with TemporaryDirectory() as folder:
            asked = self.write_script(command, Path(folder))
            (script,) = Path(folder).iterdir()
            text = f"{script.read_text().rstrip()}\n\n# submitted with: {asked}\n".replace(
                script.name, f"{self.job_prefix}-NUMBER"
            )
        return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).replace(folder, self.script_dir or "submit_scripts")

    def write_script(self, command: str, folder: Path) -> str:
        """Write the script that Parsl would submit for a command, and tell what would submit it; asks no scheduler.

        Args:
            command: starts the worker pool.
            folder: where the script goes, alone.
        """
        asked: list[str] = []

        def note(cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
            asked.append(cmd)
            return 0, "Submitted batch job 0", ""

        double: Any = copy.copy(self)
        double.script_dir, double.execute_wait = str(folder), note
        double.resources, double._lost, double._unseen = {}, {}, {}
        double.submit(command, 1)
        return asked[-1]


def parsl_state(answer: Answer) -> tuple[JobState, str]:
    """Parsl's word for what became of a job, and the scheduler's."""
    if isinstance(answer, JobFacts):
        return STATES[answer.state], f"{answer.state} {answer.reason}".strip()
    return JobState.COMPLETED, "the scheduler no longer knows this job"


class OnFirstNode(Launcher):
    """Starts one worker pool a block, as the script's own command: training reaches the other nodes by itself.

    Parsl's SimpleLauncher does the same, and warns of too few workers at each submission of more than one node.
    """

    def __call__(self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        return command


class NotSubmitted(SubmitException):
    """A refusal in the scheduler's own words."""

    def __str__(self) -> str:
        return str(self.message)


class SlurmBlocks(StatusAwareProvider, SlurmProvider):
    """Blocks under Slurm, each with one worker pool on its first node; training on all nodes starts from there.

    Args:
        block: the batch job.
        directives: of the script, beyond those that follow from the block.
        worker_init: shell lines before the workers start.
        job_prefix: how the names of its jobs begin.
        tasks_per_node: ranks that a node is asked for.
        poll_s: seconds between questions for a block's state.
        command_timeout_s: after so long a command has not answered.
    """

    def __init__(
        self,
        block: Block,
        *,
        directives: Sequence[str] = (),
        worker_init: str = "",
        job_prefix: str = "crossfed",
        tasks_per_node: int = 1,
        poll_s: int = 60,
        command_timeout_s: int = 60,
    ) -> None:
        self._tame(block, job_prefix, tasks_per_node, poll_s)
        minutes = -(-block.walltime_s // 60)  # Slurm's limits have minutes; the block's own end is kept by the trainer
        SlurmProvider.__init__(
            self,
            account=block.account or None,
            nodes_per_block=block.nodes,
            init_blocks=0,
            min_blocks=0,
            max_blocks=1,
            walltime=format_walltime(60 * minutes),
            exclusive=False,
            launcher=OnFirstNode(),
            scheduler_options="\n".join(f"#SBATCH {directive}" for directive in directives),
            worker_init=worker_init,
            cmd_timeout=command_timeout_s,
        )

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        """As above; Parsl's question, while a provider is made, whether sacct works is of no use here."""
        return (1, "", "not asked") if cmd == "sacct -X" else super().execute_wait(cmd, timeout)


class PbsBlocks(StatusAwareProvider, PBSProProvider):
    """Blocks under PBS Pro and OpenPBS; arguments as for Slurm, and what of a node is asked for.

    Args:
        cores: of each node.
        select: more of each chunk, as ``ngpus=4:system=polaris``.
    """

    def __init__(
        self,
        block: Block,
        *,
        directives: Sequence[str] = (),
        worker_init: str = "",
        job_prefix: str = "crossfed",
        tasks_per_node: int = 1,
        poll_s: int = 60,
        command_timeout_s: int = 60,
        cores: int = 1,
        select: str = "",
    ) -> None:
        self._tame(block, job_prefix, tasks_per_node, poll_s)
        row = block.queue
        queue = row.name if row.submit_to is None else row.submit_to
        PBSProProvider.__init__(
            self,
            account=block.account or None,
            queue=queue or None,
            nodes_per_block=block.nodes,
            scheduler_options="\n".join(f"#PBS {directive}" for directive in directives),
            select_options=select,
            cpus_per_node=cores,
            init_blocks=0,
            min_blocks=0,
            max_blocks=1,
            walltime=format_walltime(block.walltime_s),
            launcher=OnFirstNode(),
            worker_init=worker_init,
            cmd_timeout=command_timeout_s,
        )
