"""Sites that cannot work now for a reason that may pass: the site waits, is reported, and is asked again slowly.

A full or read-only disk at a site, or a wrong environment there, is that site's alone. Its request stays open and is
submitted again until it succeeds. A round that has its quorum closes without the site, any other round waits for it.
Only what is wrong with the driver's own disk ends the driver.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import CrossfedError, StorageError, StorageUnavailable
from apps.site import storage_problem
from workflows.console.units import seconds_text
from workflows.runtime.site_executor import OtherVersions
from workflows.strategies.base import Train
from workflows.strategies.fedavg import SynchronousSection

if TYPE_CHECKING:
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory

FIRST_RETRY_S, LONGEST_RETRY_S = 10.0, 300.0
BLOCK_RETRY_S = 300.0  # where each try takes a place in a queue


@dataclass
class Wait:
    """A site's open request that is submitted again later.

    Attributes:
        round: of the request; 0 for the enrolment.
        reason: why the last try failed.
        due: monotonic time of the next try; None while it is under way.
        again: submits the request.
    """

    round: int
    reason: str
    due: float | None
    again: Callable[[], object]


class WaitingSites:
    """The waiting sites of a campaign and their open requests.

    Args:
        plan: the checked campaign.
        run: the run directory.
        clock: monotonic seconds.
    """

    def __init__(self, plan: Plan, run: RunDirectory, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.run, self.clock = plan, run, clock
        self.waits: dict[str, Wait] = {}
        self.tries: dict[str, int] = {}  # since the site's last success
        self.told: dict[str, str] = {}

    def hold(self, site: str, number: int, error: BaseException | None, again: Callable[[], object]) -> bool:
        """Keep a failed request to submit it again later.

        Args:
            site: whose request it is.
            number: of its round; 0 for the enrolment.
            error: why it failed.
            again: submits it again.

        Returns:
            False if the reason will not pass.

        Raises:
            CrossfedError: the driver's own disk is full.
        """
        if isinstance(error, StorageError) and self._is_own(site, error):
            raise error
        if not may_pass(error):
            return False
        assert isinstance(error, CrossfedError)
        waits = self.waits.get(site)
        if waits is not None and waits.due is not None:
            return True  # it is not its turn yet
        tries = self.tries[site] = self.tries.get(site, 0) + 1
        wait_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (tries - 1))
        wait_s = BLOCK_RETRY_S if isinstance(error, OtherVersions) else wait_s
        self.waits[site] = Wait(number, error.what, self.clock() + wait_s, again)
        self._tell(site, number, error)
        return True

    def _tell(self, site: str, number: int, error: CrossfedError) -> None:
        place = f" at {error.file}" if error.file and error.file not in error.what else ""
        remedy = f"; {error.remedy[0].lower()}{error.remedy[1:]}" if error.remedy else ""
        reason = f"{error.what}{place}{remedy}; it is tried again at least every {seconds_text(LONGEST_RETRY_S)}"
        if self.told.get(site) != reason:
            self.told[site] = reason
            self.run.journal.write("site_waits", site=site, round=number, reason=reason)

    def _is_own(self, site: str, error: StorageError) -> bool:
        """Return True if an error is about the driver's disk: it could not record what a site does next."""
        if error.from_site and self.plan.sites[site].endpoint:
            return False  # it lies elsewhere, and what it says of files and disks is of its own
        file = Path(error.file) if error.file else None
        if error.site != site or (file and file.is_relative_to(self.run.artifacts)):
            return True
        if not isinstance(error, StorageUnavailable):
            return False
        full = os.strerror(errno.ENOSPC) in error.what and shares_disk(
            self.plan.sites[site].storage_root, self.run.path
        )
        return full or storage_problem(self.run.path) is not None

    def ask_again(self) -> bool:
        """Submit the requests that are due, and return True if there are any."""
        due = [wait for wait in self.waits.values() if wait.due is not None and wait.due <= self.clock()]
        for wait in due:
            wait.due = None
            wait.again()
        return bool(due)

    def succeeded(self, site: str) -> None:
        """Note that a site works."""
        self.waits.pop(site, None)
        if self.tries.pop(site, 0):
            self.told.pop(site, None)
            self.run.journal.write("site_back", site=site)

    def text(self, site: str) -> str | None:
        """Return why a site waits and when it is asked again, for the display; None if it does not wait."""
        wait = self.waits.get(site)
        if wait is None or wait.due is None:
            return None
        return f"waits: {wait.reason}; tried again in {seconds_text(max(0.0, wait.due - self.clock()))}"

    def left_out(self, newest: Collection[Train], settled: Collection[int], arrived: Collection[int]) -> Train | None:
        """Return the request of a waiting site that its round does not need, or None.

        Args:
            newest: the newest request of each site.
            settled: tasks whose end the strategy has received.
            arrived: tasks whose update it has received.
        """
        section = self.plan.campaign.strategy
        if not self.waits or not isinstance(section, SynchronousSection) or section.quorum is None:
            return None
        version = max(action.version for action in newest)
        open_now = [action for action in newest if action.task not in settled]
        for action in open_now:
            if action.site in self.waits and action.version < version:
                return action  # its round has ended
        present = [action for action in open_now if action.version == version]
        count = sum(action.version == version and action.task in arrived for action in newest)
        if count >= section.quorum and all(action.site in self.waits for action in present):
            return present[0] if present else None
        return None

    def leave_out(self, action: Train) -> str:
        """End a waiting site's request and return the reason."""
        wait = self.waits.pop(action.site)
        return f"site {action.site}, round {action.round}: left out of the round, which has its quorum: {wait.reason}"


def may_pass(error: BaseException | None) -> bool:
    """Return True for an error at a site after which the same request may succeed later."""
    return isinstance(error, StorageUnavailable | OtherVersions)


def shares_disk(root: Path, other: Path) -> bool:
    """Return True if a folder, or what exists of its path, lies on the same file system as another folder."""
    existing = next((path for path in (root, *root.parents) if path.exists()), root)
    try:
        return existing.stat().st_dev == other.stat().st_dev
    except OSError:
        return False
