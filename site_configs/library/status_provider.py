"""Provider base that treats a failed status query as unknown, never as finished, and submits no block twice.

Parsl's own classes write the scripts and submit them. Their state of a job becomes wrong afterwards: they poll once a
minute whatever interval is set, treat a job that a query does not show as completed, and forget a submission whose
answer was lost. Status queries go to ``site_configs.library.schedulers`` here.
"""

from __future__ import annotations

import copy
import logging
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from parsl.jobs.states import JobState, JobStatus
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from typing_extensions import override

from site_configs.library.schedulers import GONE, UNKNOWN, Answer, JobFacts, Scheduler, scheduler_for
from site_configs.library.schedulers.commands import NO_ANSWER, run_bounded, scheduler_environment
from site_configs.library.schedulers.shared import SharedScheduler
from site_configs.library.site import Block

SHORTEST_POLL_S = 1
NO_COMMAND = 127  # as a shell has it
LOST_S = 600.0  # a submission without an answer is searched for this long
SETTLE_S = 60.0  # time that a scheduler may need until it shows a job that it has accepted
# Parsl counts failures and gives up after some; the end of the walltime and preemption are not failures
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
    """Provider methods that replace Parsl's own; put it before Parsl's class in the list of base classes.

    Attributes:
        block: batch job.
        job_prefix: beginning of the names of the batch jobs; make it unique to the campaign, so that they can be found.
        scheduler: answers status queries, also those of the driver's own watch.
        tasks_per_node: ranks per node that the scheduler is asked for.
        poll_s: seconds between two status queries.
        holding: why no block is asked for at present, for people; empty: one may be.
        cancel_requested: ids of the jobs that were cancelled here; any other cancelled job was ended from outside.
    """

    block: Block
    job_prefix: str = "crossfed"
    scheduler: Scheduler
    tasks_per_node: int = 1
    poll_s: int = 60
    holding: str = ""
    cancel_requested: set[str]

    def _set_up(self, block: Block, job_prefix: str, tasks_per_node: int, poll_s: int) -> None:
        self.block, self.job_prefix = block, job_prefix
        self.tasks_per_node, self.poll_s = tasks_per_node, poll_s
        asked = scheduler_for(block.scheduler, block.command_environment)
        self.scheduler = SharedScheduler(asked, keep_s=self.status_polling_interval / 2)
        self._lost: dict[str, float] = {}  # name of a job whose submission was not answered -> time
        self._unseen: dict[str, float] = {}  # job that no answer has shown yet -> time of submission
        self.cancel_requested = set()
        self._last_output: tuple[int, str, str] = (0, "", "")  # exit code, stdout and stderr of the last command

    @property
    def status_polling_interval(self) -> int:
        """Return the seconds between two status queries."""
        return max(self.poll_s, SHORTEST_POLL_S)

    @override
    def submit(self, command: str, tasks_per_node: int, job_name: str = "") -> str:
        """Submit a block and return its job id; the name of the job is ``job_prefix`` and a unique end.

        Raises:
            SubmitException: refused, with the scheduler's message; or not answered, and not found by its name.
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
        """Return the job of a failed submission, if the scheduler accepted it after all."""
        code, out, error = self._last_output
        found = [] if code == NO_COMMAND else self.scheduler.find(name)
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
        """Cancel jobs that appeared after their submission was given up: Parsl has forgotten their blocks."""
        for name, since in list(self._lost.items()):
            found = self.scheduler.find(name)
            if found is None:
                raise NotSubmitted(name, f"the scheduler does not answer whether it accepted this earlier job: {name}")
            cancelled = all(self.cancel([facts.job_id for facts in found]))
            if (found and cancelled) or (not found and time.monotonic() - since > LOST_S):
                del self._lost[name]

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        """Run a command of the scheduler in the block's environment.

        A command that does not end in time is killed, so that it cannot act later, and returns ``NO_ANSWER``.
        """
        reply = run_bounded(
            shlex.split(cmd),
            {**scheduler_environment(), **self.block.command_environment},
            timeout or self.cmd_timeout,
        )
        code = (NO_COMMAND if reply.missing else NO_ANSWER) if reply.code is None else reply.code
        self._last_output = code, reply.out, reply.error
        return self._last_output

    def _status(self) -> None:
        """Query the jobs that have not ended; a job without a clear answer keeps its state."""
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
        """Cancel jobs; return True for each that is cancelled or gone."""
        if not job_ids:
            return []
        self.cancel_requested |= {str(job_id) for job_id in job_ids}  # first: block_watch may see them end at once
        left = self.scheduler.cancel([str(job_id) for job_id in job_ids])
        for job_id in job_ids:
            if job_id in self.resources and job_id not in left:
                self._set(job_id, JobState.CANCELLED)
        return [job_id not in left for job_id in job_ids]

    def render(self, command: str) -> str:
        """Return the script that Parsl would submit for a command and the submit command; runs no scheduler command.

        Args:
            command: command that starts the worker pool.
        """
        with TemporaryDirectory() as folder:
            submit = self.write_script(command, Path(folder))
            (script,) = Path(folder).iterdir()
            text = f"{script.read_text().rstrip()}\n\n# submitted with: {submit}\n".replace(
                script.name, f"{self.job_prefix}-NUMBER"
            )
        return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).replace(folder, self.script_dir or "submit_scripts")

    def write_script(self, command: str, folder: Path) -> str:
        """Write the script that Parsl would submit for a command; return the submit command; runs no scheduler command.

        Args:
            command: command that starts the worker pool.
            folder: empty folder for the script.
        """
        commands: list[str] = []

        def record(cmd: str, **_options: Any) -> tuple[int, str, str]:
            commands.append(cmd)
            return 0, "Submitted batch job 0", ""

        double: Any = copy.copy(self)
        double.script_dir, double.execute_wait = str(folder), record
        double.resources, double._lost, double._unseen = {}, {}, {}
        double.submit(command, 1)
        return commands[-1]


def parsl_state(answer: Answer) -> tuple[JobState, str]:
    """Return Parsl's state of a job, and a message with the scheduler's own."""
    if isinstance(answer, JobFacts):
        return STATES[answer.state], f"{answer.state} {answer.reason}".strip()
    return JobState.COMPLETED, "the scheduler no longer knows this job"


class NotSubmitted(SubmitException):
    """Submission that the scheduler refused; the message is the scheduler's."""

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.message)
