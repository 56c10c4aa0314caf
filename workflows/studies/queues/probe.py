"""Probes: a few tiny batch jobs that are submitted only to measure their waits, after the user's consent."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from apps.base.errors import CrossfedError, UserMistake
from site_configs.library.resolve import SiteConfigError, resolve_site, takes
from site_configs.library.schedulers import JobFacts, scheduler_for
from workflows.console.command import say
from workflows.console.units import HOUR_S, plural, seconds_text
from workflows.records.queue_history import BlockRecord, append, history_path, machine_of

if TYPE_CHECKING:
    from parsl.jobs.states import JobStatus
    from parsl.providers.base import ExecutionProvider

    from site_configs.library.site import Block, Site

logger = logging.getLogger(__name__)
MOST = 20  # jobs of one call
FIRST_POLL_S, LAST_POLL_S = 1.0, 30.0  # between status queries; doubling, to spare the schedulers
CANCELLED = "CANCELLED"  # Parsl's name of the state
PROBE = "probe"  # campaign name of probes in the history


@dataclass(frozen=True)
class Probe:
    """A job to submit: its site, and the file into which it writes the time of its start."""

    site: Site
    machine: str
    block: Block
    provider: ExecutionProvider
    stamp: Path


@dataclass(frozen=True)
class SubmittedProbe:
    """A job that was submitted and has not ended."""

    probe: Probe
    record: BlockRecord


def probe(options: argparse.Namespace) -> bool:
    """Submit the requested probes, wait for them, add them to the history, and report the results.

    Returns:
        True if any has started.

    Raises:
        UserMistake: an impossible site or shape, too many jobs, or no consent.
        CrossfedError: the schedulers accepted none of them.
    """
    folder = options.out / "probes" / datetime.now().strftime("%Y%m%d-%H%M%S")
    probes = plan(options, folder.absolute())
    announce(probes, options.timeout)
    if not options.yes:
        ask_consent()
    folder.mkdir(parents=True, exist_ok=True)
    records = run(probes, options.timeout)
    if not records:
        raise CrossfedError("no probe was accepted by a scheduler; the log lines above give the reasons")
    report(records)
    return any(record.started is not None for record in records)


def plan(options: argparse.Namespace, folder: Path) -> list[Probe]:
    """Return the jobs at each site: all shapes in turn, up to the requested number.

    Raises:
        UserMistake: more than ``MOST`` jobs, or a site that cannot be configured or has no queue.
    """
    shapes = list(itertools.product(options.probe_nodes, options.probe_walltimes))
    each = options.probes or len(shapes)
    if each * len(options.probe) > MOST:
        raise UserMistake(f"{each * len(options.probe)} probes are too many: {MOST} in one call at most")
    named = [name_and_config(text) for text in options.probe]
    settings = site_settings(options.sets, [name for name, _ in named])
    probes: list[Probe] = []
    for name, config in named:
        for number, shape in zip(range(each), itertools.cycle(shapes), strict=False):
            probes.append(_probe_of(name, config, settings[name], shape, folder / f"{name}-{number}.started"))
    return probes


def name_and_config(text: str) -> tuple[str, str]:
    """Return site and config of ``SITE=CONFIG``; a config alone is also the name of the site."""
    name, _, config = text.partition("=")
    return (name, config) if config else (Path(name).stem, name)


def site_settings(texts: Sequence[str], sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of each site from ``KEY=VALUE``, ``SITE.KEY=VALUE`` and ``sites.SITE.KEY=VALUE``."""
    settings: dict[str, dict[str, Any]] = {site: {} for site in sites}
    for text in texts:
        key, equals, value = text.partition("=")
        *place, last = key.removeprefix("sites.").split(".")
        if not equals or not last or len(place) > 1 or (place and place[0] not in settings):
            raise UserMistake(f"--set {text}: expected KEY=VALUE or SITE.KEY=VALUE with a site of --probe")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserMistake(f"--set {text}: the value is not valid YAML") from None
        for site in place or sites:
            settings[site][last] = parsed
    return settings


def _probe_of(name: str, config: str, settings: dict[str, Any], shape: tuple[int, int], stamp: Path) -> Probe:
    nodes, walltime_s = shape
    try:
        if not (takes(config, "nodes") and takes(config, "walltime")):
            raise SiteConfigError(f"{config} takes no nodes and walltime: there is no queue to probe")
        site = resolve_site(name, config, stamp.parent, settings | {"nodes": nodes, "walltime": walltime_s})
    except SiteConfigError as error:
        raise UserMistake(str(error), site=name) from None
    if site.own_block is None:
        raise UserMistake(f"{config} has no queue to probe", site=name)
    provider = site.provider("")
    provider.script_dir = str(stamp.parent)
    return Probe(site, machine_of(name, config), site.own_block, provider, stamp)


def announce(probes: Sequence[Probe], timeout_s: float) -> None:
    """Print what will be submitted and its largest cost."""
    for site, count in Counter(_shape_text(probe) for probe in probes).items():
        say(f"{plural(count, 'probe')} {site}")
    node_hours = sum(probe.block.nodes * probe.block.walltime_s for probe in probes) / HOUR_S
    say(f"Each ends as soon as it starts; at most {node_hours:.3g} node-hours are charged.")
    say(f"Those that have not started after {seconds_text(timeout_s)} are cancelled.")


def _shape_text(probe: Probe) -> str:
    block = probe.block
    shape = f"{plural(block.nodes, 'node')} for {seconds_text(block.walltime_s)}"
    return f"at {probe.site.name} ({probe.site.machine}), queue {block.queue.name}: {shape}"


def ask_consent() -> None:
    """Ask the user to confirm the submission; raises UserMistake without consent."""
    if not sys.stdin.isatty():
        raise UserMistake("probes are batch jobs: nothing was submitted", remedy="Add --yes to submit them")
    if input("Submit them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserMistake("nothing was submitted")


def run(probes: Sequence[Probe], timeout_s: float) -> list[BlockRecord]:
    """Submit the probes and follow them to their ends or to the timeout; then cancel the rest.

    Each is added to the history when it is submitted and when its end is known. At most as many are in the queue as its
    rule for one user admits; the others follow as the first ones end.

    Returns:
        The last record of each submitted job.
    """
    waiting, live, ended = list(probes), list[SubmittedProbe](), list[BlockRecord]()
    deadline, pause_s = time.monotonic() + timeout_s, FIRST_POLL_S
    try:
        while (waiting or live) and time.monotonic() < deadline:
            waiting = _submit_admitted(waiting, live)
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            news = _collect_ended(live)
            ended += news
            pause_s = FIRST_POLL_S if news else min(2 * pause_s, LAST_POLL_S)
    finally:  # also if the user interrupts: no job may be left behind
        ended += _cancel(live)
    if waiting:
        say(f"{plural(len(waiting), 'probe')} not submitted: the queue's rule for one user admitted no more in time.")
    return ended


def _submit_admitted(waiting: Sequence[Probe], live: list[SubmittedProbe]) -> list[Probe]:
    """Submit the probes that the rules admit now; return those that have to wait."""
    later: list[Probe] = []
    for probe in waiting:
        limit = probe.block.queue.queued_per_user
        there = sum(_place(other.probe) == _place(probe) for other in live)
        if limit is not None and there >= limit:
            later.append(probe)
        elif record := _submit(probe):
            live.append(SubmittedProbe(probe, record))
    return later


def _place(probe: Probe) -> tuple[str, str]:
    return probe.machine, probe.block.queue.name


def _submit(probe: Probe) -> BlockRecord | None:
    from parsl.providers.errors import SubmitException

    submitted = time.time()
    try:
        job_id = probe.provider.submit(f"date +%s.%N > '{probe.stamp}'", 1)
    except SubmitException as error:
        logger.warning("site %s: a probe was refused: %s", probe.site.name, str(error).splitlines()[0])
        return None
    block = probe.block
    record = BlockRecord(
        machine=probe.machine,
        site=probe.site.name,
        campaign=PROBE,
        scheduler=block.scheduler,
        queue=block.queue.name,
        job_id=str(job_id),
        nodes=block.nodes,
        walltime_s=block.walltime_s,
        submitted=submitted,
        started=None,
        ended=None,
        state="PENDING",
    )
    append(record)
    return record


def _collect_ended(live: list[SubmittedProbe]) -> list[BlockRecord]:
    """Remove the jobs that have ended from the list and return their records."""
    ended: list[BlockRecord] = []
    for job in list(live):
        status = job.probe.provider.status([job.record.job_id])[0]
        if status.terminal:
            live.remove(job)
            ended.append(_final(job, status))
    return ended


def _final(job: SubmittedProbe, status: JobStatus) -> BlockRecord:
    """Return the record of a job that has ended, and add it to the history.

    The start is reported by the job itself, or else by its scheduler. Without either the job counts as never started: a
    wait of unknown end must not be counted as a measured one.
    """
    started = read_stamp(job.probe.stamp) or scheduler_start(job)
    if started is None and status.state.name != CANCELLED:
        logger.warning("job %s ended and its start is unknown: its wait is not counted", job.record.job_id)
    record = replace(job.record, started=started, ended=time.time(), state=status.state.name)
    append(record)
    return record


def scheduler_start(job: SubmittedProbe) -> float | None:
    """Return the start of a job as its scheduler reports it; None if it did not start or that is unknown."""
    block, job_id = job.probe.block, job.record.job_id
    answer = scheduler_for(block.scheduler, block.command_environment).jobs([job_id]).get(job_id)
    return answer.started if isinstance(answer, JobFacts) else None


def read_stamp(path: Path) -> float | None:
    """Return the start of a job by its own clock; None if it has not written it."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _cancel(live: list[SubmittedProbe]) -> list[BlockRecord]:
    """Cancel the remaining jobs and record that they never started, or that they did at the last moment."""
    from parsl.jobs.states import JobState, JobStatus

    ended = []
    for job in live:
        if not all(job.probe.provider.cancel([job.record.job_id])):
            logger.warning("site %s: job %s could not be cancelled", job.probe.site.name, job.record.job_id)
        ended.append(_final(job, JobStatus(JobState.CANCELLED)))
    return ended


def report(records: Sequence[BlockRecord]) -> None:
    """Print the result of each job."""
    for record in records:
        shape = f"{plural(record.nodes, 'node')} for {seconds_text(record.walltime_s)}"
        waited = seconds_text(max(0.0, (record.ended or 0) - (record.submitted or 0)))
        outcome = f"not started after {waited}, {record.state.lower()}"
        if record.started is not None and record.submitted is not None:
            outcome = f"waited {seconds_text(max(0.0, record.started - record.submitted))}"
        say(f"  {record.site} {record.queue} job {record.job_id}, {shape}: {outcome}")
    say(f"Added to the history: {history_path()}")
