"""Messages for the user when a campaign has stopped."""

from __future__ import annotations

from apps.base.errors import StorageError
from workflows.console.command import FAILED, MISTAKE, complain
from workflows.console.paths import command_line, short
from workflows.planning.labels import shown_name
from workflows.planning.plan import Plan
from workflows.records import failed_trainings
from workflows.records.failed_trainings import common_cause
from workflows.records.run_directory import RunDirectory


def stopped(run: RunDirectory | None, reason: str, code: int, resumable: bool = True) -> int:
    """Print why a campaign has stopped and how to continue it; return the exit code.

    Args:
        run: its run directory, if it had one.
        reason: for the user.
        code: the exit code; after a mistake of the request no resume is advised.
        resumable: False if a resume would end in the same way.
    """
    complain(reason, code)
    if run is None:
        return code
    try:
        run.journal.write("driver_stopped", reason=reason.strip())
    except StorageError as error:
        complain(f"(this could not be written to the journal: {error})", code)
    if code == MISTAKE:
        return complain(f"What is done is kept in {short(run.path)}", code)
    if not resumable:
        return complain(f"The models before are kept: {command_line('generate.py')} {short(run.path)} --best", code)
    stopped_at = max((r["seq"] for r in run.journal.events("driver_started")), default=0)
    for record in run.journal.events("tasks_left"):
        if record["seq"] > stopped_at:
            site = record["site"]
            complain(f"What runs at {site} continues, what queues there keeps its place: a resume uses both.", code)
    return complain(f"What is done is kept. Go on with: {command_line('fl_round.py')} --resume {short(run.path)}", code)


def stopped_by_trainings(run: RunDirectory, failure: str) -> int:
    """Print why too few trainings of a campaign succeeded and what can be done; return the exit code.

    Args:
        run: its run directory.
        failure: the strategy's reason.
    """
    match common_cause(run.journal):
        case failed_trainings.NOT_FINITE:
            advice = "A resume would end here again: start a new run with a lower training.learning_rate"
            return stopped(run, f"{failure}. {advice}", FAILED, resumable=False)
        case failed_trainings.MISTAKE:
            return stopped(run, failure, MISTAKE)
    return stopped(run, failure, FAILED)


def interruption(plan: Plan | None) -> str:
    """Return what Ctrl-C has ended, by kind of site.

    Args:
        plan: of the campaign; None if it had not been made yet.
    """
    sites = plan.machines.values() if plan else ()
    batch = [shown_name(site.name) for site in sites if site.own_block]
    ended = ["the workers on this machine have ended"] if any(site.route == "local" for site in sites) else []
    ended += [f"the batch jobs of {', '.join(batch)} are cancelled"] if batch else []
    return "; ".join(["Interrupted", *ended])
