"""Providers of blocks under Slurm and PBS Pro, each block with one worker pool on its first node."""

from __future__ import annotations

from collections.abc import Sequence

from parsl.launchers.base import Launcher
from parsl.providers import PBSProProvider, SlurmProvider
from typing_extensions import override

from site_configs.library.queues import format_walltime
from site_configs.library.schedulers.pbs_records import job_ids
from site_configs.library.site import Block
from site_configs.library.status_provider import StatusAwareProvider


class OnFirstNode(Launcher):
    """Launcher of one worker pool per block, as the script's own command: training starts the other nodes by itself.

    Parsl's SimpleLauncher does the same, but warns of too few workers at each submission of more than one node.
    """

    @override
    def __call__(self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        """Return the command as it is."""
        return command


class SlurmBlocks(StatusAwareProvider, SlurmProvider):
    """Provider of blocks under Slurm.

    Args:
        block: batch job.
        directives: directives of the script, beyond those that follow from the block.
        worker_init: shell lines before the workers start.
        job_prefix: beginning of the names of its batch jobs.
        tasks_per_node: ranks per node that Slurm is asked for.
        poll_s: seconds between two queries of a block's state.
        command_timeout_s: time limit of a command of the scheduler.
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
        self._set_up(block, job_prefix, tasks_per_node, poll_s)
        minutes = -(-block.walltime_s // 60)  # Slurm's limits are in minutes; the trainer keeps the block's own end
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
        """Run a command of Slurm, except Parsl's check at the start whether sacct works: its answer is not used."""
        return (1, "", "not run") if cmd == "sacct -X" else super().execute_wait(cmd, timeout)


class PbsBlocks(StatusAwareProvider, PBSProProvider):
    """Provider of blocks under PBS Pro and OpenPBS; see ``SlurmBlocks`` for the other arguments.

    Args:
        cores: cores of each node.
        select: more resources of each chunk, such as ``ngpus=4:system=polaris``.
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
        self._set_up(block, job_prefix, tasks_per_node, poll_s)
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

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        """Run a command of PBS; of what qsub prints, return the id alone: Parsl takes each line for a job."""
        code, out, error = super().execute_wait(cmd, timeout)
        return (code, "\n".join(job_ids(out)), error) if cmd.startswith("qsub") else (code, out, error)
