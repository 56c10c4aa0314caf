"""What the sites are doing, for output that goes to a file: a line when something changes, and every few minutes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping

CHANGES_EVERY_S = 30.0
ALL_EVERY_S = 300.0
MOST_SITES = 8  # of more, the line has the number of sites in each phase


class PlainLines:
    """Chooses what to print about the sites, and when.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.shown: dict[str, str] = {}  # site -> phase that was printed
        self.changes_s = self.all_s = float("-inf")  # when changes, or all sites, were printed

    def line(self, phases: Mapping[str, tuple[str, str]], progress: str) -> str | None:
        """Return the next line, or None if there is nothing to print now.

        Args:
            phases: of each site, with the text about it.
            progress: of the campaign.
        """
        now = self.clock()
        if now - self.changes_s < CHANGES_EVERY_S:
            return None
        kinds = {site: without_numbers(phase) for site, (phase, _) in phases.items()}
        changed = [site for site, kind in kinds.items() if self.shown.get(site) != kind]
        everything = now - self.all_s >= ALL_EVERY_S
        if not changed and not everything:
            return None
        self.shown, self.changes_s = kinds, now
        self.all_s = now if everything or len(changed) == len(phases) else self.all_s
        if len(phases) > MOST_SITES:
            counts = Counter(kinds.values()).most_common()
            parts = [f"{count} {_plural(count)} {kind}" for kind, count in counts]
        else:
            parts = [f"{site}: {phases[site][1]}" for site in (phases if everything else changed)]
        return "  ".join([time.strftime("%H:%M:%S"), *([progress] if everything else []), *parts])


def _plural(count: int) -> str:
    return "site" if count == 1 else "sites"


def without_numbers(phase: str) -> str:
    """Return a phase without its numbers: a wait that has grown by a minute is no change."""
    return re.sub(r"[\d.,:]+", "#", phase)
