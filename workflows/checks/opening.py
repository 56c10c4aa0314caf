"""Start a new run, resume an interrupted one, or only check a campaign."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.base.errors import UserMistake
from workflows.checks.batch_scripts import dry_run
from workflows.checks.here import require_all
from workflows.checks.live import check_live
from workflows.checks.model import model_remarks, require_models
from workflows.checks.places import place_problems
from workflows.checks.preview import describe, robust_warning, switched_off, unusual_rate
from workflows.checks.reach import reach_mistakes
from workflows.checks.round_preview import first_round
from workflows.console.command import DONE, MISTAKE, say
from workflows.console.paths import DEFAULT_CAMPAIGN
from workflows.dataflow.admission import admissible, admit
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import Plan, make_plan
from workflows.records.changes import keep_campaign, resumed_campaign
from workflows.records.run_directory import RunDirectory, choose_path, open_existing, open_new, unfinished_text


def start(options: argparse.Namespace) -> tuple[Plan, RunDirectory]:
    """Check a campaign and create its run directory.

    Raises:
        UserMistake: something cannot work; no file is written.
    """
    _require_no_admission(options)
    source = options.campaign or DEFAULT_CAMPAIGN
    campaign = load_campaign(source, options.sets, options.sites)
    path, unfinished = choose_path(campaign, options.name)
    plan = make_plan(campaign, path.resolve(), source)
    require_models(plan, source)
    require_all(plan, source)
    if unfinished:
        say(f"{unfinished} is {unfinished_text(unfinished)}\nThis is a new run: {path}\n")
    run = open_new(path, campaign, source, options.sets, options.sites)
    say(f"{campaign.name}: {campaign.extent} at {', '.join(plan.sites)}; all files go to {path}")
    for line in (*unusual_rate(campaign), *switched_off(campaign), *robust_warning(plan)):
        say(line)
    return plan, run


def resume(options: argparse.Namespace) -> tuple[Plan, RunDirectory]:
    """Open an interrupted run, with the changes that its campaign may have.

    Raises:
        UserMistake: something cannot work; no file is changed.
    """
    if options.name:
        raise UserMistake("--name: a resumed run keeps its name; leave out --name, or leave out --resume")
    run = open_existing(options.resume)
    try:
        campaign = resumed_campaign(run, options.campaign, options.sets, options.sites)
        plan = make_plan(campaign, run.path, run.path / "campaign.yaml")
        require_models(plan, run.path / "campaign.yaml")
        require_all(plan, run.path / "campaign.yaml")
        admitted = admissible(run.journal, options.admit)
        run.begin()
        keep_campaign(run, campaign)
        admit(run.journal, admitted)
    except BaseException:
        run.close()
        raise
    done = max((record["version"] for record in run.journal.events("aggregated")), default=0)
    verb = "is" if done == 1 else "are"
    say(f"Resuming {options.resume}: {done} of {campaign.extent} {verb} done; sites {', '.join(plan.sites)}")
    for site, number in admitted:
        say(f"The update of {site} in round {number} is let in, whatever its held-out loss.")
    return plan, run


def _require_no_admission(options: argparse.Namespace) -> None:
    if options.admit:
        raise UserMistake("--admit: it lets in an update of a run that is resumed; name the run with --resume")


def _new_plan(options: argparse.Namespace) -> tuple[Plan, Path]:
    """Return the plan of a campaign and the run directory that it would get."""
    _require_no_admission(options)
    source = options.campaign or DEFAULT_CAMPAIGN
    campaign = load_campaign(source, options.sets, options.sites)
    path, _ = choose_path(campaign, options.name)
    return make_plan(campaign, path.resolve(), source), path


def _resumed_plan(options: argparse.Namespace) -> tuple[Plan, Path]:
    """Return the plan that a run would be resumed with, and its directory; nothing in it is changed."""
    run = open_existing(options.resume)
    try:
        campaign = resumed_campaign(run, options.campaign, options.sets, options.sites)
        admissible(run.journal, options.admit)
        return make_plan(campaign, run.path, run.path / "campaign.yaml"), options.resume
    finally:
        run.close()


def check(options: argparse.Namespace) -> int:
    """Check a campaign without running it, and print what would run.

    Returns:
        The exit code: MISTAKE if a place lacks what it needs, or a site reports a problem (``--live``), else DONE.

    Raises:
        UserMistake: the first thing that cannot work.
    """
    plan, path = _resumed_plan(options) if options.resume else _new_plan(options)
    source = path / "campaign.yaml" if options.resume else options.campaign or DEFAULT_CAMPAIGN
    for line in describe(plan, path, model_remarks(plan, source)):
        say(line)
    if options.dry_run:
        for line in (*first_round(plan), *dry_run(plan, path.resolve())):
            say(line)
    problems = [*reach_mistakes(plan), *place_problems(plan)]
    for problem in problems:
        say(f"PROBLEM  {problem}")
    fine = check_live(plan, say) if options.live else True
    return DONE if fine and not problems else MISTAKE
