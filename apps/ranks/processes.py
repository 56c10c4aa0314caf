"""The worker's part of work that runs as ranks: start them, give them jobs, and keep them for the next one.

Ranks stay for as long as the worker and their plan: what they have imported, their process group, tokenizer, model and
samples are there for the next job. Ranks that wait for a job use no processor; they end with the worker.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from apps.base.errors import CrossfedError, RanksLost, TaskError, UserMistake
from apps.base.files import PRIVATE, atomic_file
from apps.base.identity import Place, identity
from apps.base.stop import StopRequest
from apps.base.versions import require_same_code
from apps.ranks.control_line import Peer, WorkerEnd
from apps.ranks.handshake import new_secret
from apps.ranks.launchers import launch_command, launch_environment, open_store, rendezvous_address
from apps.ranks.parallel import Parallel, ranks_of

logger = logging.getLogger(__name__)
PROGRAM = "apps.rank"
TICK_S = 0.1
START_S = 900.0  # for all ranks to start: Python starts slowly when many nodes read the same files
READY_S = 60.0  # for ranks that were kept to answer that they are ready for a job
SILENCE_S = 300.0  # without an answer to a ping a rank counts as hung
SETTLE_S = 1.0  # after the first error: the rank that failed first may not be the first to report
GRACE_S = 5.0


class RankPlan(TypedDict):
    """Settings that ranks are started with; ranks are kept for the next job if all settings are equal."""

    root: str  # the site's storage
    parallel: Parallel
    device: str
    threads: int  # of each rank
    precision: str
    model: Any  # settings of the model that they hold
    code_version: str


class RankJob(TypedDict):
    """One piece of work of all ranks together, in plain values."""

    kind: str  # names the function in ``apps.rank`` that does it
    place: Place
    logs: str  # folder for the output of the ranks
    work: dict[str, Any]  # arguments of that function


@dataclass
class KeptRanks:
    """The ranks that this worker keeps, if there are any."""

    ranks: RankProcesses | None = None

    def end(self) -> None:
        """End them."""
        ranks, self.ranks = self.ranks, None
        if ranks:
            ranks.end()


@cache
def kept_ranks() -> KeptRanks:
    """Return the one holder of this process."""
    kept = KeptRanks()
    atexit.register(kept.end)
    return kept


def run_as_ranks(plan: RankPlan, job: RankJob, stop: StopRequest) -> Any:
    """Do a job on ranks: those of the last job if they have the same plan and answer, else on fresh ones.

    Args:
        plan: of the ranks.
        job: to be done by all of them.
        stop: a request to stop, which is passed on to the ranks.

    Returns:
        The result that rank 0 reports.

    Raises:
        CrossfedError: the error of the rank that failed first.
        RanksLost: a rank ended or hung without reporting a result, or did not start.
        UserMistake: the launcher or the network interface does not exist.
    """
    kept = kept_ranks()
    Path(job["logs"]).mkdir(parents=True, exist_ok=True)
    if kept.ranks and not (kept.ranks.plan_key == identity(dict(plan)) and kept.ranks.are_ready_for(job)):
        kept.end()
    try:
        if kept.ranks is None:
            kept.ranks = RankProcesses(plan, Path(job["logs"]))
            kept.ranks.start(job)
        result = kept.ranks.finish(stop)
    except BaseException:
        kept.end()
        raise
    if stop.requested:
        kept.end()  # the block ends
    return result


class RankProcesses:
    """Processes that a site's launcher has started as ranks, as their worker sees them."""

    def __init__(self, plan: RankPlan, logs: Path) -> None:
        require_same_code(plan["code_version"], None, started_now=True)
        self.plan_key, self.ranks, self.logs = identity(dict(plan)), ranks_of(plan["parallel"]), logs
        address = rendezvous_address(plan["parallel"])
        secret = new_secret()
        self.store = open_store(address)
        self.line = WorkerEnd(address, secret)
        self.start_file = logs / f"ranks-{secrets.token_hex(4)}.json"  # no late rank of an earlier group finds it
        start = {
            "parallel": plan["parallel"],
            "device": plan["device"],
            "code_version": plan["code_version"],
            "logs": str(logs),
            "secret": secret,
            "control_line": self.line.address,
            "rendezvous": [address, self.store.port],
        }
        with atomic_file(logs, self.start_file.name, PRIVATE) as stream:
            stream.write(json.dumps(start).encode())
        self.log = logs / "launcher.log"
        try:
            self.process = _launch(plan, self.start_file, self.log)
        except UserMistake:
            self.line.close()
            self.start_file.unlink()
            raise

    def start(self, job: RankJob) -> None:
        """Wait until all ranks have started, and give them their first job.

        Raises:
            CrossfedError: they have not started, or cannot join each other.
        """
        end = time.monotonic() + START_S
        while len(self.line.peers) < self.ranks:
            self.line.receive(TICK_S)
            if self._has_failed() or time.monotonic() > end:
                self._settle()
                raise self._failure()
        self.start_file.unlink(missing_ok=True)  # all have read it
        self.line.give(dict(job))
        while not self.line.all_ready(self.ranks):
            self.line.receive(TICK_S)
            self._require_answers()
            if self._has_failed():
                self._settle()
                raise self._failure()

    def are_ready_for(self, job: RankJob) -> bool:
        """Offer another job to the ranks; return False if not all of them answer, so that fresh ones are needed."""
        end = time.monotonic() + READY_S
        self.line.receive(0)
        self.line.give(dict(job))
        while self.line.all_connected() and not self._has_failed() and time.monotonic() < end:
            if self.line.all_ready(self.ranks):
                return True
            self.line.receive(TICK_S)
        logger.warning("the ranks of the last job have ended or do not answer: starting others")
        return False

    def finish(self, stop: StopRequest) -> Any:
        """Let the ranks do the job that they are ready for; return the result of rank 0.

        Raises:
            CrossfedError: see ``run_as_ranks``.
        """
        self.line.go()
        passed_on = False
        while not self.line.all_ended(self.ranks):
            self.line.receive(TICK_S)
            if stop.requested and not passed_on:
                self.line.request_stop()
                passed_on = True
            self._require_answers()
            if self._has_failed():
                break
        self._settle()
        if self.line.errors or self.line.lost or not self.line.all_ended(self.ranks):
            raise self._failure()
        return self.line.peers[0].result

    def end(self) -> None:
        """End the ranks, then their launcher, and what is left of both on this node: frozen processes do not end."""
        self.line.end()
        for number in (None, signal.SIGTERM):
            if number is not None:
                self._signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
                break
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.start_file.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _require_answers(self) -> None:
        if hung := self.line.silent(SILENCE_S):
            raise RanksLost(
                f"{_listed(hung)} of {self.ranks} has not answered for {SILENCE_S:.0f} s", file=str(self.logs)
            )

    def _has_failed(self) -> bool:
        return bool(self.line.errors or self.line.lost) or self.process.poll() is not None

    def _settle(self) -> None:
        """Wait a little for what the other ranks report."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end and not self.line.all_ended(self.ranks):
            self.line.receive(TICK_S)

    def _failure(self) -> CrossfedError:
        """Return the first cause: an expected error of a rank, a lost rank, or an error that followed from it."""
        line = self.line
        expected = [error for error in line.errors if not isinstance(error, TaskError)]
        if expected:
            return expected[0]
        if line.lost:
            return RanksLost(
                f"{_listed(line.lost)} of {self.ranks} ended without reporting a result: killed, or out of memory?",
                file=str(self.logs),
            )
        if line.errors:
            return line.errors[0]
        code = self.process.poll()
        ended = (
            f"then the launcher ended with code {code}" if code is not None else f"the others not in {START_S:.0f} s"
        )
        what = f"{len(line.peers)} of {self.ranks} ranks started, {ended}"
        return RanksLost(f"{what}: {_last_output_line(self.log)}", file=str(self.log))


def _launch(plan: RankPlan, start: Path, log: Path) -> subprocess.Popen:
    command = launch_command(plan["parallel"], [sys.executable, "-m", PROGRAM, str(start)])
    environment = launch_environment(os.environ, plan["parallel"], plan["threads"])
    with open(log, "ab") as output:
        try:  # in a session of its own: a signal to the worker's process group is passed on by the worker alone
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise UserMistake(f"cannot start {command[0]!r}: {error.strerror}", remedy="Check ranks.launch") from None


def _listed(peers: list[Peer]) -> str:
    return ", ".join(f"rank {peer.rank} ({peer.where})" for peer in peers)


def _last_output_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
