"""Cancel jobs that a dead driver has left with a scheduler that the campaign no longer uses: their site has moved.

Jobs that were left at the sites as they are now are found and cancelled by their names, see ``cancel_leftovers``. Here
the journal names the jobs, and the campaign as it was then names their scheduler. If that does not answer, or if the
answer may be another machine's, the user gets a message that lists the jobs and the command that cancels them.
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

from apps.base.errors import UserMistake
from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.schedulers import GONE, Answer, JobFacts, scheduler_for
from site_configs.library.site import Block, Site
from workflows.planning.campaign import Campaign, SiteEntry
from workflows.planning.labels import EVALUATOR, KEYS, SERVER_BLOCK
from workflows.planning.places import own_block
from workflows.records.journal import Journal
from workflows.runtime.executors import job_prefix

if TYPE_CHECKING:
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory

CANCEL = {"slurm": "scancel", "pbs": "qdel"}


@dataclass(frozen=True)
class JobsLeft:
    """Jobs of one site under one configuration whose end is not in the journal.

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
    """Return the jobs without a known end, by site and configuration.

    A driver that was started with the same configuration has asked for them: what it did not find has ended.
    """
    left: dict[tuple[str, str], tuple[str, str]] = {}  # site, job id -> the site's entry as JSON, host
    entries: dict[str, str] = {}
    host = ""
    for record in journal.records:
        match record["event"]:
            case "campaign_opened" | "campaign_changed":
                plain = machine_entries(record["campaign"]).items()
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


def machine_entries(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a recorded campaign that describe machines, by the label of their executor."""
    own = {SERVER_BLOCK: campaign.get("server", {}).get("site"), EVALUATOR: campaign.get("evaluation", {}).get("site")}
    return {**campaign["sites"], **{label: entry for label, entry in own.items() if isinstance(entry, dict)}}


def settle_moved_sites(plan: Plan, run: RunDirectory) -> None:
    """Cancel the jobs of an earlier driver at machines that sites have moved away from, or record how to do that."""
    for left in left_jobs(run.journal):
        earlier = _earlier_site(left, run.path)
        block = earlier.own_block if earlier else None
        now = plan.machines.get(left.site)
        if block and now and _same_scheduler(block, left, now, plan.campaign):
            continue
        remaining = _cancel(block, left, job_prefix(run.opened["token"]), run.journal) if block else left.job_ids
        if remaining:
            run.journal.write(
                "blocks_left", site=left.site, job_ids=remaining, reason=left_message(left, block, remaining)
            )


def left_message(left: JobsLeft, block: Block | None, job_ids: Sequence[str]) -> str:
    """Return a message with the jobs that may be left and the command that cancels them."""
    command = CANCEL[block.scheduler] if block else " or ".join(CANCEL.values())
    variables = block.command_environment if block else {}
    parts = [*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), command, *job_ids]
    return (
        f"{left.site}: job{'s' * (len(job_ids) > 1)} {', '.join(job_ids)} of its earlier configuration ({left.config})"
        f" may still be there; to cancel on {left.host}: {' '.join(parts)}"
    )


def _earlier_site(left: JobsLeft, run_dir: Path) -> Site | None:
    """Return the site under its earlier configuration; None if its file is gone or refuses these settings."""
    try:
        if left.site in KEYS:
            return own_block(left.site, left.config, left.entry.settings, run_dir)
        return resolve_site(left.site, left.config, run_dir, left.entry.settings)
    except (SiteConfigError, UserMistake):
        return None


def _same_scheduler(block: Block, left: JobsLeft, now: Site, campaign: Campaign) -> bool:
    """Return True if the site's scheduler is still the same one: its queue has just been searched."""
    return (
        now.own_block is not None
        and campaign.config_of(left.site) == left.config
        and (block.scheduler, block.command_environment) == (now.own_block.scheduler, now.own_block.command_environment)
    )


def _cancel(block: Block, left: JobsLeft, prefix: str, journal: Journal) -> tuple[str, ...]:
    """Cancel the jobs of this run at an earlier scheduler, and return those that may remain.

    Jobs are identified by their names alone: on another machine the same number is another user's job.
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
    """Return True if an answer means that our job has ended; an unknown one has, on the host it was submitted from."""
    if isinstance(answer, JobFacts):
        return answer.name.startswith(prefix) and not answer.live
    return answer is GONE and same_host
