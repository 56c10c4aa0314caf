"""Live display of a running campaign: one line per site, one row per round; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workflows.console.units import bytes_text, plural, seconds_text
from workflows.planning.labels import shown_name
from workflows.records.batch_jobs import LOST_ENDINGS
from workflows.records.enrolments import cut_text
from workflows.records.failed_blocks import failure_text
from workflows.records.journal import Record
from workflows.records.late_updates import LateUpdateFinder
from workflows.records.rounds import RoundSummary, summaries

if TYPE_CHECKING:
    from apps.training.progress import Progress
    from workflows.dataflow.activity import SiteActivity
    from workflows.dataflow.engine import Engine
    from workflows.runtime.block_watch import BlockWatch

REFRESH_S = 0.25
PLAIN_EVERY_S = 30.0
OLD_S = 5.0  # progress that is older is shown with its age
PROBLEMS = (
    *("update_refused", "task_failed", "block_replaced", "block_failed", "block_waits", "blocks_left"),
    *("executor_replaced", "site_held", "start_slow"),
)
GLOBUS_PROBLEMS = (
    "compute_unreachable",
    "compute_back",
    "compute_asked_again",
    "endpoint_status",
    "transfer_unreachable",
    "transfer_back",
    "transfer_trouble",
)
PHASES = {
    "starting": "starting workers",
    "asking": "requesting a block",
    "ready": "ready",
    "gathering": "ready, waiting at most two minutes for the others",
    "idle": "idle, waiting for the others",
    "staging": "receiving the model",
    "queued": "queued",
    "loading": "loading model and data",
    "training": "training",
    "saving": "saving",
    "returning": "returning its update",
}


class Display:
    """Display of a campaign on the terminal; ``tick`` may be called at any rate.

    Args:
        console: where to print.
        sites: names, in the order of their columns.
        rounds: planned.
        period: what the campaign counts, ``round`` or ``version``.
    """

    def __init__(self, console: Console, sites: Sequence[str], rounds: int, period: str = "round") -> None:
        self.console, self.sites, self.rounds, self.period = console, sites, rounds, period
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.shown: set[int] = set()  # rounds
        self.last_tick = self.last_plain = 0.0
        self.began = time.time()
        self.records_read = 0  # journal records whose problems were shown
        self.late_updates = LateUpdateFinder()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tick(self, engine: Engine) -> None:
        """Update the display, if the last update is some time ago."""
        now = time.monotonic()
        if now - self.last_tick < REFRESH_S:
            return
        self.last_tick = now
        self.show_all(engine)
        if self.live:
            self.live.update(self._site_table(engine))
        elif now - self.last_plain > PLAIN_EVERY_S:
            self.last_plain = now
            rows = [*self.sites, *engine.plan.server_blocks]
            line = "  ".join(f"{shown_name(row)}: {site_text(engine.activity(row), self.period)}" for row in rows)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show_all(self, engine: Engine) -> None:
        """Print the problems and the rounds that were not printed yet."""
        self.show_problems(engine)
        self.show_rounds(engine)

    def show_rounds(self, engine: Engine) -> None:
        """Print the rounds that were not printed yet."""
        for summary in summaries(engine.run.journal, engine.plan.campaign.evaluation.sites, self.shown):
            if not self.shown:
                self.console.print(self._header(), style="bold", highlight=False, soft_wrap=True)
            self.shown.add(summary.number)
            self.console.print(self._row(summary), highlight=False, soft_wrap=True)

    def show_problems(self, engine: Engine) -> None:
        """Print the problems that the journal has recorded since the last call."""
        records = engine.run.journal.records
        for record in records[self.records_read :]:
            text = self._late_text(record) or problem_text(record)
            if text and record["time"] >= self.began:
                self.console.print(f"  ! {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        self.records_read = len(records)

    def _late_text(self, record: Record) -> str | None:
        late = self.late_updates.read(record) if self.period == "round" else None
        return f"{late.site}: {late.reason}" if late else None

    def _heads(self) -> list[str]:
        return [self.period, "global loss", *self.sites, "moved", "seconds"]

    def _header(self) -> str:
        return "  ".join(head.rjust(max(len(head), 7)) for head in self._heads())

    def _row(self, row: RoundSummary) -> str:
        losses = [f"{row.site_losses[s]:.3f}" if s in row.site_losses else "-" for s in self.sites]
        cells = [f"{row.number}/{self.rounds}", f"{row.global_loss:.3f}", *losses]
        cells += [bytes_text(row.nbytes), f"{row.seconds:.1f}"]
        return "  ".join(cell.rjust(max(len(head), 7)) for head, cell in zip(self._heads(), cells, strict=True))

    def _site_table(self, engine: Engine) -> Table:
        table = Table.grid(padding=(0, 2))
        for site in (*self.sites, *engine.plan.server_blocks):
            now = engine.activity(site)
            bar = Text(_bar(now.progress), style="cyan") if now.progress and now.phase == "training" else Text("")
            table.add_row(Text(f"  {shown_name(site)}", style="bold"), Text(site_text(now, self.period)), bar)
        return table


def problem_text(record: Record) -> str | None:
    """Return one line about a record of a problem; None for other records."""
    if record["event"] == "block_ended":
        return block_problem(record)
    if record["event"] == "enrolled":
        return cut_text(record)
    if record["event"] == "blocks_cancelled":
        jobs = plural(len(record["job_ids"]), "job")
        return f"{shown_name(record['site'])}: {jobs} of an earlier driver cancelled: {', '.join(record['job_ids'])}"
    if record["event"] in GLOBUS_PROBLEMS:
        return globus_problem(record)
    if record["event"] == "site_waits":
        what = f"round {record['round']}" if record["round"] else "the start"
        return f"{what} waits for {shown_name(record['site'])}: {record['reason']}"
    if record["event"] == "site_back":
        return f"{shown_name(record['site'])}: works again"
    if record["event"] not in PROBLEMS:
        return None
    reason: str = failure_text(record) if record["event"] == "block_failed" else record["reason"]
    name = shown_name(record["site"])
    return reason if reason.startswith((f"site {name}", f"{name}: ", f"{name}, ")) else f"{name}: {reason}"


def block_problem(record: Record) -> str | None:
    """Return one line about a batch job that ended without this campaign's request; None for other ends."""
    block = f"{shown_name(record['site'])}: block {record['job_id']}"
    reason = f" ({record['reason']})" if record["reason"] else ""
    if record["state"] in LOST_ENDINGS:
        return f"{block} has ended: {record['state'].replace('_', ' ')}{reason}"
    worthy = record["state"] in ("cancelled", "unknown") or record.get("busy")
    if not worthy or record.get("asked") is not False:
        return None
    end = "was cancelled, not by this campaign" if record["state"] == "cancelled" else "has ended"
    end += f", {record['state']}, with work on it" if record["state"] == "completed" else ""
    end += reason
    follow_up = (
        "its work continues in the next block" if record["started"] else "it was still queued; a new one follows"
    )
    return f"{block} {end}; {follow_up}"


def globus_problem(record: Record) -> str | None:
    """Return one line about a failure, or recovery, of a Globus service or endpoint."""
    match record["event"]:
        case "compute_unreachable" | "transfer_unreachable":
            service = "Compute" if record["event"].startswith("compute") else "Transfer"
            return f"Globus {service} does not answer: {record['reason']}; work at the sites continues"
        case "compute_back" | "transfer_back":
            return f"Globus {'Compute' if record['event'].startswith('compute') else 'Transfer'} answers again"
        case "endpoint_status":
            return f"{record['site']}: its endpoint is {record['status']}"
        case "compute_asked_again":
            return f"{record['site']}: call repeated, {record['reason']}"
        case "transfer_trouble":
            transfer = "sending the model" if record["direction"] == "send" else "fetching the update"
            return f"{record['site']}: {transfer}: {record['reason']}"
    return None


def site_text(activity: SiteActivity, period: str = "round") -> str:
    """Return what a site is doing; at a batch site also its running block and the remaining walltime."""
    text = phase_text(activity.phase, activity.progress, period, seen_at=activity.seen_at)
    block = block_text(activity.watch, time.time()) if activity.watch is not None else None
    return f"{block}: {text}" if block else text


def block_text(watch: BlockWatch, now: float) -> str | None:
    """Return the newest block of a site and its remaining walltime; None if it does not run."""
    live = [job for job in list(watch.jobs.values()) if not job.ended]
    facts = live[-1].facts if live else None
    if facts is None or facts.state != "running":
        return None
    left_s = 0.0 if facts.started is None else facts.started + watch.block.walltime_s - now
    return f"block {facts.job_id} runs" + (f", {seconds_text(left_s)} left" if left_s > 0 else "")


def _bar(progress: Progress, width: int = 10) -> str:
    done = round(width * progress["step"] / max(1, progress["steps"]))
    return "━" * done + "╌" * (width - done)


def phase_text(phase: str, progress: Progress | None, period: str = "round", seen_at: float | None = None) -> str:
    """Return a phase of a site as text.

    Args:
        phase: a key of ``PHASES``, or the text itself.
        progress: of the training, if there is one.
        period: what the campaign counts.
        seen_at: unix time at which the progress was reported; None for now.
    """
    text = PHASES.get(phase, phase)
    if phase == "training" and progress:
        number = f"{'round' if period == 'round' else 'request'} {progress['round']}"
        text = f"{number}: step {progress['step']} of {progress['steps']}"
        if progress["loss"] is not None:
            text += f", loss {progress['loss']:.3f}, {progress['tokens_per_s']:.0f} tokens/s"
    age_s = time.time() - seen_at if progress and seen_at is not None else 0.0
    return f"{text}, {seconds_text(age_s)} ago" if age_s >= OLD_S else text
