"""The main job: a federated fine-tuning campaign, round after round, as a Parsl dataflow.

python workflows/fl_round.py [CAMPAIGN.yaml] [--name NAME] [--resume RUN_DIR [--admit SITE:ROUND]...]
                             [--sites A,B,...] [--set KEY=VALUE]... [--check [--live]] [--dry-run] [-v]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import CrossfedError, ModelNotFinite, UserMistake, main_line
from workflows.console.command import DONE, FAILED, INTERRUPTED, MISTAKE, complain, log_to, say, stop_in_order
from workflows.console.options import add_campaign_options
from workflows.console.paths import command_line, short

if TYPE_CHECKING:
    from workflows.dataflow.engine import Engine
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory
    from workflows.strategies.base import Strategy

logger = logging.getLogger(__name__)


def federate(strategy: Strategy, engine: Engine) -> str | None:
    """Run the algorithm: the strategy receives events and answers with actions.

    Returns:
        The reason why the campaign could not be finished, or None.
    """
    from workflows.dataflow.reaction import reaction
    from workflows.strategies.base import Aggregate, ReleaseBlock, RequestBlock, SetTimer, Stop, Train

    engine.begin()  # the first model; every site enrols
    for event in engine.events():
        for action in reaction(strategy, event, engine):
            match action:
                case Train():
                    engine.train(action)  # stage out, train, stage in
                case Aggregate():
                    engine.aggregate(action)  # the next model, and its evaluation beside the next round
                case RequestBlock():
                    engine.request_block(action)  # an event follows when it starts
                case ReleaseBlock():
                    engine.release_block(action)
                case SetTimer():
                    engine.set_timer(action)
                case Stop(failure=failure):
                    engine.finish() if failure is None else engine.give_up()
                    return failure
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fl_round.py",
        description="Fine-tune one model together across sites, each keeping its data.",
        epilog="Exit codes: 0 done, 1 failed (resumable) or no usable model (diverged), 2 a mistake in the request, "
        "130 interrupted (resumable).",
    )
    add_campaign_options(parser, default=None)  # a resume takes its own
    parser.add_argument("--name", help="the run goes to runs/NAME; default: the campaign's name, numbered if taken")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue an interrupted run")
    parser.add_argument(
        "--admit",
        action="append",
        default=[],
        metavar="SITE:ROUND",
        help="with --resume: let in an update that was put aside (checks.max_loss_increase)",
    )
    parser.add_argument("--check", action="store_true", help="check everything, say what would run, run nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="as --check, and print the first round's graph and the batch scripts"
    )
    parser.add_argument(
        "--live", action="store_true", help="with --check: also ask the sites' schedulers, storage and environments"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    stop_in_order()
    from workflows.records.scores import Diverged
    from workflows.runtime.stopping import interruption, stopped

    plan, run = None, None
    try:
        from workflows.checks.opening import check, resume, start

        if options.check or options.dry_run or options.live:
            return check(options)
        plan, run = resume(options) if options.resume else start(options)
        log_to(run.path / "logs" / "driver.log", options.verbose)
        return run_campaign(plan, run)
    except UserMistake as error:
        return stopped(run, str(error), MISTAKE)
    except KeyboardInterrupt:
        return stopped(run, f"\n{interruption(plan)}", INTERRUPTED)
    except (Diverged, ModelNotFinite) as error:
        return stopped(run, str(error), FAILED, resumable=False)
    except (CrossfedError, OSError) as error:
        return stopped(run, str(error), FAILED)
    except Exception as error:  # the outermost edge: one line for the user, the rest goes to the log
        if run or options.verbose:  # without a log Python would print the traceback
            logger.exception("unforeseen")
        more = " (logs/driver.log has more)" if run else " (-v shows more)"
        return stopped(run, f"Unforeseen {type(error).__name__}: {main_line(error)}{more}", FAILED)
    finally:
        if run:
            end(run)


def end(run: RunDirectory) -> None:
    """Leave a report of what is done, and release the run directory."""
    from workflows.reporting.live_report import leave_report

    try:
        leave_report(run)
    finally:
        run.close()


def run_campaign(plan: Plan, run: RunDirectory) -> int:
    """Run a plan to its end, show its progress and write the report; return the exit code."""
    from rich.console import Console

    from workflows.dataflow.engine import Engine
    from workflows.reporting.display import Display
    from workflows.reporting.live_report import LiveReport
    from workflows.runtime.kernel import parsl_for
    from workflows.runtime.stopping import stopped_by_trainings
    from workflows.strategies import make_strategy

    campaign, began, console = plan.campaign, time.time(), Console(highlight=False)
    if run.finished_rounds == campaign.rounds:
        whole = f"The {campaign.extent} is" if campaign.rounds == 1 else f"All {campaign.extent} are"
        say(f"{whole} done already.")
        return conclude(plan, run)
    strategy = partial(make_strategy, campaign.strategy, campaign.rounds, campaign.training.steps)
    with (
        closing(LiveReport(run.path)) as report,
        Display(console, list(plan.sites), campaign.rounds, campaign.period) as display,
        parsl_for(plan, run) as kernel,
    ):

        def tick(engine: Engine) -> None:
            display.tick(engine)
            report.tick(display.complete)

        engine = Engine(plan, run, kernel, tick)
        failure = federate(strategy(), engine)
        if failure and engine.ended_by_earlier_failure():  # what failed is asked for once more by this driver
            engine = Engine(plan, run, kernel, tick)
            failure = federate(strategy(), engine)
        display.show_all(engine)
    if failure:
        return stopped_by_trainings(run, failure)
    run.journal.write("campaign_finished", rounds=campaign.rounds, seconds=time.time() - began)
    say("")
    return conclude(plan, run)


def conclude(plan: Plan, run: RunDirectory) -> int:
    """Write the report of a finished campaign, judge its model by its test losses, and return the exit code."""
    from workflows.evaluation.example import example_question
    from workflows.records.scores import model_scores, verdict
    from workflows.reporting.model_card import write_model_card
    from workflows.reporting.report import write_report

    write_model_card(run.path)
    found = verdict(model_scores(run.journal.records), plan.campaign.period)
    where = f"The model is in {short(run.path / 'model')}, the report is {short(write_report(run.path))}"
    if found.failed:
        return complain(f"Finished without success. {found.text} {where}", FAILED)
    say(f"Done. {where}")
    if found.text:
        say(found.text)
    say(f"Ask it: {command_line('generate.py')} {short(run.path)} {example_question(plan.evaluation_work)}")
    return DONE


if __name__ == "__main__":
    from workflows.console.command import leave

    leave(main)
