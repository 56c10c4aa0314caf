"""Live display of a running campaign: one line per site, one row per round; plain lines without a terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from apps.base.plain_text import one_line
from workflows.console.units import plural, seconds_text
from workflows.planning.labels import shown_name
from workflows.records.journal import Record
from workflows.records.late_updates import LateUpdateFinder
from workflows.records.rounds import RoundReader, RoundSummary
from workflows.reporting.plain_lines import PlainLines, without_numbers
from workflows.reporting.problem_lines import problem_text
from workflows.reporting.round_rows import RoundRows, TimeLeft, elapsed_text

if TYPE_CHECKING:
    from apps.training.progress import Progress
    from workflows.dataflow.activity import SiteActivity
    from workflows.dataflow.engine import Engine
    from workflows.runtime.block_watch import BlockWatch

REFRESH_S = 0.25
OLD_S = 5.0  # progress that is older is shown with its age
LONG_S = 3.0  # a phase that lasts longer is shown with its length
FILE_WIDTH = 160  # columns of output that goes to a file
EARLIER_ROWS = 3  # rounds of earlier drivers that a resume shows again
PHASES = {
    "starting": "starting workers",
    "asking": "requesting a block",
    "ready": "ready",
    "preparing": "ready, waiting for the first model",
    "gathering": "ready, waiting at most two minutes for the others",
    "idle": "idle, waiting for the others",
    "staging": "receiving the model",
    "queued": "queued",
    "worker": "waiting for its worker",
    "loading": "loading model and data",
    "training": "training",
    "saving": "saving",
    "returning": "returning its update",
}
TIMED = [phase for phase in PHASES if phase != "training"]  # the text of the others has a time or a step


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
        terminal = console.is_terminal
        self.live = Live(console=console, auto_refresh=False, transient=True) if terminal else None
        self.rows = RoundRows(sites, rounds, period, console.width if terminal else FILE_WIDTH, stamped=not terminal)
        self.left, self.plain = TimeLeft(rounds, period), PlainLines()
        self.reader: RoundReader | None = None
        self.complete = 0  # rounds, those of earlier drivers too
        self.lines: list[int] = []  # lengths of the live lines, as they were drawn
        self.phases: dict[str, tuple[str, float]] = {}  # site -> its phase, and since when
        self.last_tick = 0.0
        self.began = time.time()
        self.rounds_read = self.records_read = 0  # journal records whose rounds, or problems, were shown
        self.late_updates = LateUpdateFinder()

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._settle_width()
            self.live.stop()

    def tick(self, engine: Engine) -> None:
        """Update the display, if the last update is some time ago."""
        now = time.monotonic()
        if now - self.last_tick < REFRESH_S:
            return
        self.last_tick = now
        self._settle_width()
        self.show_all(engine)
        rows = (*self.sites, *engine.plan.server_blocks)
        activities = {shown_name(row): engine.activity(row) for row in rows}
        if self.live:
            lines = self._live_lines(activities, engine.server_activity())
            self.live.update(Group(*lines), refresh=True)
            self.lines = [line.cell_len for line in lines]
            return
        phases = {s: (one_line(PHASES.get(a.phase, a.phase)), site_text(a, self.period)) for s, a in activities.items()}
        if line := self.plain.line(phases, self.left.text()):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _settle_width(self) -> None:
        """Remove the lines that a narrower window has wrapped; rich only removes as many as it has drawn."""
        wrapped = sum(max(0, length - 1) // max(1, self.console.width) for length in self.lines)
        up = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        if wrapped:
            self.console.control(Control(*up * wrapped))
        self.lines = []

    def show_all(self, engine: Engine) -> None:
        """Print the problems and the rounds that were not printed yet."""
        self.show_problems(engine)
        self.show_rounds(engine)

    def show_rounds(self, engine: Engine) -> None:
        """Print the rounds that are complete and were not printed yet; of those of earlier drivers the last few."""
        first = self.reader is None
        if self.reader is None:
            evaluation = engine.plan.campaign.evaluation
            self.reader = RoundReader(evaluation.sites, evaluation.every, self.rounds, self.period)
        records = engine.run.journal.records
        new, self.rounds_read = records[self.rounds_read :], len(records)
        found = self.reader.read(new) if new else []
        if found and not self.complete:
            self.console.print(self.rows.header(), style="bold", highlight=False, soft_wrap=True)
        self.complete += len(found)
        for summary in found:
            self.left.earlier(summary.number) if first else self.left.complete(summary.number)
        if first and len(found) > EARLIER_ROWS + 1:
            hidden = plural(len(found) - EARLIER_ROWS, f"earlier {self.period}")
            self.console.print(f"({hidden} are in the report)", style="dim", highlight=False, soft_wrap=True)
            found = found[-EARLIER_ROWS:]
        self._print_rows(found)

    def _print_rows(self, rows: Sequence[RoundSummary]) -> None:
        for summary in rows:
            self.console.print(self.rows.row(summary), highlight=False, soft_wrap=True)

    def show_problems(self, engine: Engine) -> None:
        """Print the problems that the journal has recorded since the last call."""
        records = engine.run.journal.records
        for record in records[self.records_read :]:
            text = self._late_text(record) or problem_text(record)
            if text and record["time"] >= self.began:
                self.console.print(
                    f"  ! {one_line(text)}", style="yellow", highlight=False, markup=False, soft_wrap=True
                )
        self.records_read = len(records)

    def _late_text(self, record: Record) -> str | None:
        late = self.late_updates.read(record) if self.period == "round" else None
        return f"{late.site}: {late.reason}" if late else None

    def _live_lines(self, activities: Mapping[str, SiteActivity], server: str) -> list[Text]:
        """Return one line per site and one about the campaign; as many sites as the window has lines for."""
        most = max(1, self.console.height - 4)
        shown = list(activities.items())[: len(activities) if len(activities) <= most else most - 1]
        texts = {site: site_text(now, self.period) + self._since(site, now) for site, now in shown}
        names, longest = max(map(len, texts)), max(map(len, texts.values()))
        bar = min(40, max(10, self.console.width - names - longest - 8))
        lines = []
        for site, now in shown:
            line = Text.assemble("  ", (site.ljust(names), "bold"), "  ", texts[site].ljust(longest), "  ")
            if now.progress and now.phase == "training":
                line.append(_bar(now.progress, bar), style="cyan")
            lines.append(line)
        others = [one_line(PHASES.get(now.phase, now.phase)) for now in list(activities.values())[len(shown) :]]
        if others:
            counts = ", ".join(f"{count} {kind}" for kind, count in Counter(map(without_numbers, others)).most_common())
            lines.append(Text(f"  and {plural(len(others), 'more site')}: {counts}"))
        lines.append(Text(f"  {self.left.text()}" + (f", {server}" if server else ""), style="dim"))
        for line in lines:
            line.rstrip()
            line.truncate(self.console.width - 1, overflow="ellipsis")
        return lines

    def _since(self, site: str, now: SiteActivity) -> str:
        """Return how long a site has been in its phase, where its text does not say so."""
        phase, began = self.phases.get(site, ("", 0.0))
        if phase != now.phase:
            began = time.monotonic()
            self.phases[site] = now.phase, began
        age_s = time.monotonic() - began
        return f" {elapsed_text(age_s)}" if now.phase in TIMED and age_s >= LONG_S else ""


def site_text(activity: SiteActivity, period: str = "round") -> str:
    """Return what a site is doing; at a batch site also its running block and the remaining walltime."""
    phase = "worker" if activity.phase == "queued" and activity.watch is None else activity.phase
    text = phase_text(phase, activity.progress, period, seen_at=activity.seen_at)
    block = block_text(activity.watch, time.time()) if activity.watch is not None else None
    return one_line(f"{block}: {text}" if block else text)


def block_text(watch: BlockWatch, now: float) -> str | None:
    """Return the newest block of a site and its remaining walltime; None if it does not run."""
    live = [job for job in list(watch.jobs.values()) if not job.ended]
    facts = live[-1].facts if live else None
    if facts is None or facts.state != "running":
        return None
    left_s = 0.0 if facts.started is None else facts.started + watch.block.walltime_s - now
    return f"block {facts.job_id} runs" + (f", {seconds_text(left_s)} left" if left_s > 0 else "")


def _bar(progress: Progress, width: int = 10) -> str:
    done = min(width, round(width * progress["step"] / max(1, progress["steps"])))
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
    number = f"{'round' if period == 'round' else 'request'} {progress['round']}: " if progress else ""
    if phase in ("loading", "saving"):
        text = number + text
    if phase == "training" and progress:
        text = f"{number}step {progress['step']} of {progress['steps']}"
        if progress["loss"] is not None:
            text += f", loss {progress['loss']:.3f}, {progress['tokens_per_s']:.0f} tokens/s"
    age_s = time.time() - seen_at if progress and seen_at is not None else 0.0
    return f"{text}, {seconds_text(age_s)} ago" if age_s >= OLD_S else text
