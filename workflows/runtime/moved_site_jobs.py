"""Jobs that a dead driver has left with a scheduler that the present campaign does not use: their site has moved since.

What was left at the sites as they are now is found and cancelled by the jobs' names, see ``cancel_leftovers``. Here it
is the journal that knows of jobs, and the campaign as it was then that knows whom to ask. Where nobody answers, or the
answer may be another machine's, the user is told which jobs may be there and how to cancel them.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.schedulers import GONE, Answer, JobFacts, scheduler_for
from site_configs.library.site import Block, Site
from workflows.planning.campaign import SiteEntry
from workflows.records.journal import Journal
from workflows.runtime.executors import job_prefix

if TYPE_CHECKING:
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory

CANCEL = {"slurm": "scancel", "pbs": "qdel"}


@dataclass(frozen=True)
class JobsLeft:
    """Jobs of one site under one configuration whose end nobody has noted.

    Attributes:
        entry: the site's part of the campaign as it was then.
        host: where they were submitted.
    """

    site: str
    entry: SiteEntry
    host: str
    job_ids: tuple[str, ...]

    @property
    def config(self) -> str:
        return self.entry.config or self.site


def left_jobs(journal: Journal) -> list[JobsLeft]:
    """The jobs without a known end, by site and configuration.

    A driver that was started with the same configuration has asked for them: what it did not find has ended.
    """
    left: dict[tuple[str, str], tuple[str, str]] = {}  # site, job id -> the site's entry as JSON, host
    entries: dict[str, str] = {}
    host = ""
    for record in journal.records:
        match record["event"]:
            case "campaign_opened" | "campaign_changed":
                plain = record["campaign"]["sites"].items()
                entries = {site: json.dumps(entry, sort_keys=True) for site, entry in plain}
            case "driver_started":
                host = record["host"]
                left = {job: (entry, where) for job, (entry, where) in left.items() if entry != entries.get(job[0])}
            case "block_submitted":
                left[record["site"], str(record["job_id"])] = entries[record["site"]], host
            case "block_ended":
                left.pop((record["site"], str(record["job_id"])), None)
            case "blocks_cancelled" | "blocks_left":
                for job_id in record["job_ids"]:
                    left.pop((record["site"], str(job_id)), None)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (site, job_id), (entry, where) in left.items():
        groups[site, entry, where].append(job_id)
    return [JobsLeft(site, SiteEntry(**json.loads(e)), where, tuple(ids)) for (site, e, where), ids in groups.items()]


def settle_moved_sites(plan: Plan, run: RunDirectory) -> None:
    """Cancel what an earlier driver has left at the machines that sites have moved away from, or tell how to."""
    for left in left_jobs(run.journal):
        earlier = _as_it_was(left, run.path)
        block = earlier.own_block if earlier else None
        now = plan.campaign.sites[left.site]
        if block and _asked_already(block, left, plan.sites[left.site], now.config or left.site):
            continue
        remaining = _cancel(block, left, job_prefix(run.opened["token"]), run.journal) if block else left.job_ids
        if remaining:
            run.journal.write(
                "blocks_left", site=left.site, job_ids=remaining, reason=left_in_words(left, block, remaining)
            )


def left_in_words(left: JobsLeft, block: Block | None, job_ids: Sequence[str]) -> str:
    """Which jobs may be there, and the command that ends them."""
    command = CANCEL[block.scheduler] if block else " or ".join(CANCEL.values())
    variables = block.command_environment if block else {}
    words = [*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), command, *job_ids]
    return (
        f"{left.site}: job{'s' * (len(job_ids) > 1)} {', '.join(job_ids)} of its earlier configuration ({left.config})"
        f" may still be there; to cancel on {left.host}: {' '.join(words)}"
    )


def _as_it_was(left: JobsLeft, run_dir: Path) -> Site | None:
    """The site under its earlier configuration; None where its file is gone or takes these settings no more."""
    try:
        return resolve_site(left.site, left.config, run_dir, left.entry.settings)
    except SiteConfigError:
        return None


def _asked_already(block: Block, left: JobsLeft, now: Site, config: str) -> bool:
    """Whether the site's scheduler is still the same one, so that its queue has just been looked through."""
    return (
        now.own_block is not None
        and config == left.config
        and (block.scheduler, block.command_environment) == (now.own_block.scheduler, now.own_block.command_environment)
    )


def _cancel(block: Block, left: JobsLeft, prefix: str, journal: Journal) -> tuple[str, ...]:
    """Cancel what the earlier scheduler has of this run, as far as it answers here; the jobs that may remain.

    Jobs are known by their names alone: on another machine the same number is somebody else's job.
    """
    scheduler = scheduler_for(block.scheduler, block.command_environment)
    found = scheduler.find(prefix)
    if found is None:
        return left.job_ids
    kept = set(scheduler.cancel([facts.job_id for facts in found])) if found else set()
    ended = [facts.job_id for facts in found if facts.job_id not in kept]
    if ended:
        journal.write("blocks_cancelled", site=left.site, job_ids=ended, reason="left by an earlier driver")
    rest = [job_id for job_id in left.job_ids if job_id not in ended]
    answers: Mapping[str, Answer] = scheduler.jobs(rest) if rest else {}
    return tuple(i for i in rest if not _has_ended(answers[i], prefix, same_host=left.host == os.uname().nodename))


def _has_ended(answer: Any, prefix: str, *, same_host: bool) -> bool:
    """Whether an answer says that our job is over; that it is not known says so only where it was submitted."""
    if isinstance(answer, JobFacts):
        return answer.name.startswith(prefix) and not answer.live
    return answer is GONE and same_host
