"""Open a new run, an interrupted run, or only check a campaign."""

from __future__ import annotations

import argparse

from apps.base.errors import UserMistake
from workflows.checks.here import require_all
from workflows.checks.live import check_live
from workflows.checks.preview import describe, dry_run, switched_off
from workflows.console.command import DONE, MISTAKE, say
from workflows.console.paths import DEFAULT_CAMPAIGN
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import Plan, make_plan
from workflows.records.changes import resumed_campaign
from workflows.records.run_directory import RunDirectory, choose_path, open_existing, open_new, resume_hint


def start(options: argparse.Namespace) -> tuple[Plan, RunDirectory]:
    """A new run of a checked campaign."""

    source = options.campaign or DEFAULT_CAMPAIGN
    campaign = load_campaign(source, options.sets, options.sites)
    path, unfinished = choose_path(campaign, options.name)
    plan = make_plan(campaign, path.resolve(), source)
    require_all(plan, source)
    if unfinished:
        say(f"{unfinished} is unfinished; {resume_hint(unfinished)}\nThis is a new run: {path}\n")
    run = open_new(path, campaign, source, options.sets, options.sites)
    say(f"{campaign.name}: {campaign.extent} at {', '.join(plan.sites)}; all files go to {path}")
    for what in switched_off(campaign):
        say(what)
    return plan, run


def resume(options: argparse.Namespace) -> tuple[Plan, RunDirectory]:
    """An interrupted run, with what of its campaign may have changed."""

    run = open_existing(options.resume)
    try:
        campaign = resumed_campaign(run, options.campaign, options.sets, options.sites)
        plan = make_plan(campaign, run.path, run.path / "campaign.yaml")
        require_all(plan, run.path / "campaign.yaml")
    except BaseException:
        run.close()
        raise
    say(f"Resuming {options.resume}: {campaign.extent} at {', '.join(plan.sites)}")
    return plan, run


def check(options: argparse.Namespace) -> int:
    """All checks, and in words what would run.

    Raises:
        UserMistake: the first thing that cannot work.
    """

    if options.resume:
        raise UserMistake("--check and --dry-run look at a campaign, not at a run: leave out --resume")
    source = options.campaign or DEFAULT_CAMPAIGN
    campaign = load_campaign(source, options.sets, options.sites)
    path, _ = choose_path(campaign, options.name)
    plan = make_plan(campaign, path.resolve(), source)
    for line in describe(plan, path):
        say(line)
    for line in dry_run(plan, path.resolve()) if options.dry_run else ():
        say(line)
    return MISTAKE if options.live and not check_live(plan, say) else DONE
