"""Parsl's executor for one batch site, kept apart from the others: it can be held, asked in bounded time, replaced.

Parsl asks the interchange of every site in turn and without a limit of time, so that one stopped interchange would stop
the scaling of all sites. A dead interchange, or a worker pool with another version of Parsl or Python, ends Parsl's
executor for good; a new one for that site alone takes its place here.
"""

from __future__ import annotations

import logging
import re
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import zmq
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError, VersionMismatch
from typing_extensions import override

from apps.base.errors import CrossfedError, WorkersLost
from workflows.runtime.block_executor import BlockExecutor
from workflows.runtime.worker_messages import NOT_PLAIN

if TYPE_CHECKING:
    from parsl.jobs.states import JobStatus

logger = logging.getLogger(__name__)
ANSWER_S = 5.0  # that an interchange on this host may take for an answer
RETIRE_S = 5.0
SILENT_S = 600.0  # after so long without one it is replaced


class OtherVersions(CrossfedError):  # noqa: N818 - a condition of a site
    """A site's worker pool runs another version of Parsl or Python than the driver."""


class SiteExecutor(BlockExecutor):
    """Parsl's executor for the blocks of one site.

    Attributes:
        held: why no block may be submitted at present; empty if blocks may be.
        silent_since: monotonic time since which the interchange has not answered; None while it does.
        registered: blocks of which a worker pool has ever connected.
        managers: connected worker pools, as Parsl describes them.
    """

    held: str = ""
    silent_since: float | None = None
    registered: tuple[str, ...] = ()
    managers: tuple[dict[str, Any], ...] = ()

    @override
    def start(self) -> None:
        self.asking = threading.Lock()  # the socket of the questions is not for two threads at a time
        super().start()

    @override
    def scale_out_facade(self, n: int) -> list[str]:
        return [] if self.held else super().scale_out_facade(n)

    @override
    def connected_blocks(self) -> list[str]:
        answer = self._ask("CONNECTED_BLOCKS")
        self.registered = self.registered if answer is None else tuple(answer)
        return list(self.registered)

    @override
    def connected_managers(self) -> list[dict[str, Any]]:
        answer = self._ask("MANAGERS")
        self.managers = self.managers if answer is None else tuple(answer)
        return list(self.managers)

    @override
    def _hold_manager(self, manager_id: str) -> None:
        self._ask(["HOLD_MANAGER", manager_id])

    @override
    def status(self) -> dict[str, JobStatus]:
        found = super().status()
        self.connected_managers()  # for whoever compares the scheduler's word with the workers'
        return found

    def _ask(self, question: str | list[str]) -> Any:
        """Return the interchange's answer, or None if it does not answer in time."""
        if self.interchange_proc is not None and self.interchange_proc.poll() is not None:
            return None
        with self.asking:
            try:
                answer = self.command_client.run(question, timeout_s=ANSWER_S)
            except (CommandClientTimeoutError, CommandClientBadError):
                self.silent_since = self.silent_since or time.monotonic()
                logger.warning("the interchange of %s does not answer", self.label)
                self._replace_socket()
                return None
        self.silent_since = None
        return answer

    def _replace_socket(self) -> None:
        """Open the socket of the questions anew: after one without an answer it cannot be used again."""
        try:
            self.command_client.zmq_socket.close()
            self.command_client.create_socket_and_bind()
            self.command_client.ok = True
        except (zmq.ZMQError, OSError, ValueError):  # the next question tries again
            logger.exception("the interchange of %s cannot be asked", self.label)

    def ailment(self) -> CrossfedError | None:
        """Return why this executor can never answer again; None while it works, and after its blocks were given up."""
        if self.bad_state_is_set:
            return other_versions(self.executor_exception, self.label)
        assert self.interchange_proc is not None
        if (code := self.interchange_proc.poll()) is not None:
            because = "; its worker pool has sent a message that is not read" if code == NOT_PLAIN else ""
            return WorkersLost(f"its interchange (a process on this host) has ended{because}", site=self.label)
        if self._result_queue_thread is None or not self._result_queue_thread.is_alive():
            return WorkersLost("the results of its interchange are not read any more", site=self.label)
        if self.silent_since is not None and time.monotonic() - self.silent_since > SILENT_S:
            return WorkersLost(f"its interchange (a process on this host) hangs for {SILENT_S:.0f} s", site=self.label)
        return None

    def retire(self, reason: CrossfedError) -> None:
        """End the processes and cancel the blocks of this executor, and fail its open tasks with the reason."""
        if self.interchange_proc is not None and self.interchange_proc.poll() is None:
            self.interchange_proc.kill()
        living = [i for i, status in self._status.items() if not status.terminal and i in self.blocks_to_job_id]
        if living and self.provider is not None:
            try:
                self.provider.cancel([self.blocks_to_job_id[block] for block in living])
            except (OSError, subprocess.SubprocessError):
                logger.exception(
                    "blocks of %s could not be cancelled; they end when they miss its interchange", self.label
                )
        # a library's queue to a dead process may not close
        ending = threading.Thread(target=self.shutdown, name=f"retire-{self.label}", daemon=True)
        ending.start()
        ending.join(RETIRE_S)
        if not self.bad_state_is_set:
            self._executor_exception = reason
            self._executor_bad_state.set()
            for future in list(self.tasks.values()):
                if not future.done():
                    future.set_exception(reason)

    def take_over(self, before: SiteExecutor) -> None:
        """Continue the numbers of an earlier executor's blocks, by which their logs are told apart, and its hold."""
        self._block_id_counter, self.held = before._block_id_counter, before.held


def other_versions(error: BaseException | None, site: str) -> OtherVersions | None:
    """Return Parsl's error about versions in words, or None if it is another error."""
    if not isinstance(error, VersionMismatch):
        return None
    there, here = _versions(error.manager_version), _versions(error.interchange_version)
    return OtherVersions(
        f"it runs {there}, the driver runs {here}",
        site=site,
        remedy="Install the driver's versions in the site's environment",
    )


def _versions(text: str) -> str:
    """Return Parsl's ``py.v=3.11 parsl.v=2026.10.26`` in words."""
    found = dict(re.findall(r"(\w+)\.v=(\S+)", text))
    return f"Parsl {found.get('parsl', 'unknown')} on Python {found.get('py', 'unknown')}"


def task_error(error: BaseException | None, site: str) -> BaseException | None:
    """Return the reason behind a task that failed because its executor was given up."""
    if not isinstance(error, BadStateException):
        return error
    given_up: Any = error.executor
    reason = given_up.executor_exception
    return other_versions(reason, site) or (reason if isinstance(reason, CrossfedError) else error)
