"""Progress of the sites whose storage this machine sees, from the files that their tasks write."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from apps.training.progress import Progress, progress_text
from workflows.trust.answers import read_progress

logger = logging.getLogger(__name__)
CLOCKS_S = 5.0


class ProgressFiles:
    """Reader of the files, for a driver that has begun now.

    Args:
        roots: storage of each site.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots, self.began = roots, time.time()
        self.seen: dict[str, tuple[Progress, float]] = {}  # by site: the newest, and when it was new
        self.refused: set[str] = set()  # sites whose file was told to be no progress

    def read(self, site: str) -> Progress | None:
        """Return what a site's file says, or None where it says nothing that can be believed."""
        try:
            found: Progress = read_progress(progress_text(self.roots[site]))
        except OSError:  # the site's storage does not answer: its tasks will say so
            return None
        except ValueError as error:
            if site not in self.refused:
                logger.warning("site %s: its progress is not shown: %s", site, error)
            self.refused.add(site)
            return None
        # what the workers of an earlier driver wrote does not count; clocks of a facility differ a little
        if found["time"] <= self.began - CLOCKS_S:
            return None
        if site not in self.seen or self.seen[site][0] != found:
            self.seen[site] = found, time.time()
        return found

    def seen_at(self, site: str) -> float | None:
        """Return the UNIX time, on this host's clock, at which a site's progress was new; None if it is not known."""
        return self.seen[site][1] if site in self.seen else None
