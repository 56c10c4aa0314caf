"""What the user sees while a campaign runs: one line per site, one row per round; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workflows.console.units import bytes_text, plural, seconds_text
from workflows.records.batch_jobs import LOST, duration_text
from workflows.records.failed_blocks import failure_text
from workflows.records.journal import Record
from workflows.records.late_updates import LateUpdates
from workflows.records.rounds import RoundSummary, summaries

if TYPE_CHECKING:
    from apps.training.progress import Progress
    from workflows.dataflow.activity import SiteActivity
    from workflows.dataflow.engine import Engine
    from workflows.runtime.block_watch import BlockWatch

REFRESH_S = 0.25
PLAIN_EVERY_S = 30.0
OLD_S = 5.0  # the age from which on it is told
TROUBLES = ("update_refused", "task_failed", "block_replaced", "block_failed", "blocks_left")
GLOBUS_TROUBLES = (
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
    "asking": "asking for a block",
    "ready": "ready",
    "gathering": "ready; waits two minutes at most for the others",
    "idle": "idle, waiting for the others",
    "staging": "staging the model out",
    "queued": "queued",
    "loading": "loading model and data",
    "training": "training",
    "saving": "saving",
    "returning": "returning its update",
}


class Display:
    """Shows a campaign on the terminal; ``tick`` may be called as often as one likes."""

    def __init__(self, console: Console, sites: Sequence[str], rounds: int, period: str = "round") -> None:
        self.console, self.sites, self.rounds, self.period = console, sites, rounds, period
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.shown: set[int] = set()
        self.last_tick = self.last_plain = 0.0
        self.began = time.time()
        self.told = 0  # journal records whose troubles were shown
        self.late = LateUpdates()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tick(self, engine: Engine) -> None:
        now = time.monotonic()
        if now - self.last_tick < REFRESH_S:
            return
        self.last_tick = now
        self.show_all(engine)
        if self.live:
            self.live.update(self._site_table(engine))
        elif now - self.last_plain > PLAIN_EVERY_S:
            self.last_plain = now
            said = "  ".join(f"{site}: {site_words(engine.activity(site), self.period)}" for site in self.sites)
            self.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def show_all(self, engine: Engine) -> None:
        """Print the troubles and the rounds that were not printed yet."""
        self.show_troubles(engine)
        self.show_rounds(engine)

    def show_rounds(self, engine: Engine) -> None:
        """Print the rounds that were not printed yet."""
        for summary in summaries(engine.run.journal, engine.plan.campaign.evaluation.sites, self.shown):
            if not self.shown:
                self.console.print(self._header(), style="bold", highlight=False, soft_wrap=True)
            self.shown.add(summary.number)
            self.console.print(self._row(summary), highlight=False, soft_wrap=True)

    def show_troubles(self, engine: Engine) -> None:
        """Print what went wrong since the last look, in the journal's words."""
        records = engine.run.journal.records
        for record in records[self.told :]:
            text = self._late(record) or trouble(record)
            if text and record["time"] >= self.began:
                self.console.print(f"  ! {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        self.told = len(records)

    def _late(self, record: Record) -> str | None:
        """An update that does not count, in a line."""
        late = self.late.hear(record) if self.period == "round" else None
        return f"{late.site}: {late.reason}" if late else None

    def _header(self) -> str:
        return "  ".join(head.rjust(max(len(head), 7)) for head in self._heads())

    def _heads(self) -> list[str]:
        return [self.period, "global loss", *self.sites, "moved", "seconds"]

    def _row(self, row: RoundSummary) -> str:
        losses = [f"{row.site_losses[s]:.3f}" if s in row.site_losses else "-" for s in self.sites]
        cells = [f"{row.number}/{self.rounds}", f"{row.global_loss:.3f}", *losses]
        cells += [bytes_text(row.nbytes), f"{row.seconds:.1f}"]
        return "  ".join(cell.rjust(max(len(head), 7)) for head, cell in zip(self._heads(), cells, strict=True))

    def _site_table(self, engine: Engine) -> Table:
        table = Table.grid(padding=(0, 2))
        for site in self.sites:
            now = engine.activity(site)
            bar = Text(_bar(now.progress), style="cyan") if now.progress and now.phase == "training" else Text("")
            table.add_row(Text(f"  {site}", style="bold"), Text(site_words(now, self.period)), bar)
        return table


def trouble(record: Record) -> str | None:
    """A record of something that went wrong, in a line; None for all others."""
    if record["event"] == "block_ended":
        return block_trouble(record)
    if record["event"] == "blocks_cancelled":
        jobs = plural(len(record["job_ids"]), "job")
        return f"{record['site']}: {jobs} of an earlier driver cancelled: {', '.join(record['job_ids'])}"
    if record["event"] in GLOBUS_TROUBLES:
        return globus_trouble(record)
    if record["event"] not in TROUBLES:
        return None
    reason: str = failure_text(record) if record["event"] == "block_failed" else record["reason"]
    return reason if record["site"] in reason else f"{record['site']}: {reason}"


def block_trouble(record: Record) -> str | None:
    """A batch job that has ended and that nobody here has told to; None for all others."""
    named = f"{record['site']}: block {record['job_id']}"
    because = f" ({record['reason']})" if record["reason"] else ""
    if record["state"] in LOST:
        return f"{named} has ended: {record['state'].replace('_', ' ')}{because}"
    if record["state"] not in ("cancelled", "unknown") or record.get("asked") is not False:
        return None
    how = f"was cancelled, not by this campaign{because}" if record["state"] == "cancelled" else f"has ended{because}"
    left = "what it was at goes on in the next" if record["started"] else "it was still waiting, the next is asked for"
    return f"{named} {how}; {left}"


def globus_trouble(record: Record) -> str | None:
    """What Globus or an endpoint does not do, and when it does again."""
    match record["event"]:
        case "compute_unreachable" | "transfer_unreachable":
            service = "Compute" if record["event"].startswith("compute") else "Transfer"
            return f"Globus {service} does not answer: {record['reason']}; what is at the sites goes on"
        case "compute_back" | "transfer_back":
            return f"Globus {'Compute' if record['event'].startswith('compute') else 'Transfer'} answers again"
        case "endpoint_status":
            return f"{record['site']}: its endpoint is {record['status']}"
        case "compute_asked_again":
            return f"{record['site']}: asked again, {record['reason']}"
        case "transfer_trouble":
            way = "sending the model" if record["direction"] == "send" else "fetching the update"
            return f"{record['site']}: {way}: {record['reason']}"
    return None


def site_words(activity: SiteActivity, period: str = "round") -> str:
    """Describe what a site is doing; at a batch site with its running job and the time that job has left."""
    text = phase_words(activity.phase, activity.progress, period, seen_at=activity.seen_at)
    block = block_words(activity.watch, time.time()) if activity.watch is not None else None
    return f"{block}: {text}" if block else text


def block_words(watch: BlockWatch, now: float) -> str | None:
    """The newest block of a site if it runs, and what is left of its walltime."""
    live = [job for job in list(watch.jobs.values()) if not job.ended]
    facts = live[-1].facts if live else None
    if facts is None or facts.state != "running":
        return None
    left_s = 0.0 if facts.started is None else facts.started + watch.block.walltime_s - now
    return f"block {facts.job_id} runs" + (f", {duration_text(left_s)} left" if left_s > 0 else "")


def _bar(progress: Progress, width: int = 20) -> str:
    done = round(width * progress["step"] / max(1, progress["steps"]))
    return "━" * done + "╌" * (width - done)


def phase_words(phase: str, progress: Progress | None, period: str = "round", seen_at: float | None = None) -> str:
    """A phase of the engine in words; what it does not know is in words already.

    Args:
        phase, progress: of the engine.
        period: what the campaign counts.
        seen_at: UNIX time at which the progress was so; None: now.
    """
    text = PHASES.get(phase, phase)
    if phase == "training" and progress:
        number = f"{'round' if period == 'round' else 'order'} {progress['round']}"
        text = f"{number}: step {progress['step']} of {progress['steps']}"
        if progress["loss"] is not None:
            text += f", loss {progress['loss']:.3f}, {progress['tokens_per_s']:.0f} tokens/s"
    return text + (age_words(time.time() - seen_at) if progress and seen_at is not None else "")


def age_words(age_s: float) -> str:
    """How old a view is, where it is older than a person would think."""
    return f", {seconds_text(age_s)} ago" if age_s >= OLD_S else ""
