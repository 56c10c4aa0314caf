"""The rows of the rounds on the terminal, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from workflows.console.units import bytes_text, plural, seconds_text
from workflows.records.rounds import RoundSummary

LOSSES = "losses of the sites"
LAST_ROUNDS = 10  # from which the time that is left is estimated


class RoundRows:
    """One line per round: the losses of each site if they fit into the width, else their range.

    Args:
        sites: names, in the order of their columns.
        rounds: planned.
        period: what the campaign counts, ``round`` or ``version``.
        width: of the terminal, in columns.
        stamped: with the time of day, for output that goes to a file.
    """

    def __init__(self, sites: Sequence[str], rounds: int, period: str, width: int, stamped: bool = False) -> None:
        self.sites, self.rounds, self.stamped = sites, rounds, stamped
        self.heads = [period, "global loss", *sites, "moved", "seconds", *(["time"] if stamped else [])]
        self.compact = len(self.header()) > width
        if self.compact:
            self.heads = [period, "global loss", LOSSES, *self.heads[2 + len(sites) :]]

    def header(self) -> str:
        return "  ".join(head.rjust(self._width(head)) for head in self.heads)

    def row(self, row: RoundSummary) -> str:
        """Return the line of a round; a loss that was not measured is a dash."""
        losses = [_loss_text(row.site_losses.get(site)) for site in self.sites]
        if self.compact:
            found = sorted(loss for loss in row.site_losses.values() if loss == loss)
            losses = [f"{found[0]:.3f} to {found[-1]:.3f}" if len(found) > 1 else _loss_text(*found[:1])]
        cells = [f"{row.number}/{self.rounds}", _loss_text(row.global_loss), *losses]
        cells += [bytes_text(row.nbytes), f"{row.seconds:.1f}"]
        cells += [time.strftime("%H:%M:%S")] if self.stamped else []
        return "  ".join(cell.rjust(self._width(head)) for head, cell in zip(self.heads, cells, strict=True))

    def _width(self, head: str) -> int:
        return max(len(head), 8 if head == "time" else 7)


def _loss_text(loss: float | None = None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


class TimeLeft:
    """Estimates the time that is left from the newest rounds of this driver.

    Args:
        rounds: planned.
        period: what the campaign counts.
        clock: monotonic, in seconds.
    """

    def __init__(self, rounds: int, period: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.rounds, self.period, self.clock = rounds, period, clock
        self.began = clock()
        self.done = 0  # the newest round that is complete
        self.marks: deque[tuple[float, int]] = deque(maxlen=LAST_ROUNDS)

    def earlier(self, number: int) -> None:
        """Count the rounds that earlier drivers have done."""
        self.done = max(self.done, number)

    def complete(self, number: int) -> None:
        """Count a round that is complete now."""
        if number > self.done:
            self.marks = self.marks or deque([(self.began, self.done)], maxlen=LAST_ROUNDS)
            self.done = number
            self.marks.append((self.clock(), number))

    def left_s(self) -> float | None:
        """Return the seconds that are left if further rounds take as long as the newest; None before the first."""
        if len(self.marks) < 2:
            return None
        (first_s, first), (last_s, last) = self.marks[0], self.marks[-1]
        a_round_s = (last_s - first_s) / (last - first)
        begun_s = min(self.clock() - last_s, a_round_s)  # of the next round
        return max(0.0, (self.rounds - last) * a_round_s - begun_s)

    def text(self) -> str:
        """Return how far the campaign is, how long this driver has run, and the time that is left."""
        parts = [f"{self.done} of {plural(self.rounds, self.period)} done"]
        parts.append(f"{elapsed_text(self.clock() - self.began)} since the start")
        left_s = self.left_s()
        if left_s is not None and self.done < self.rounds:
            parts.append(f"about {seconds_text(left_s)} left")
        return ", ".join(parts)


def elapsed_text(seconds: float) -> str:
    """Return a length of time as a clock shows it: ``0:23``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
