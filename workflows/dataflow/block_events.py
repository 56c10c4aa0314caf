"""Blocks that a strategy requests: their requests, starts and ends as events.

A request is a small task that returns when a worker runs it; Parsl starts the block that it needs. So batch jobs and
processes on this host are treated alike. A site has one block at a time here, waiting or running.

A block does not outlive the driver that holds it: the next driver begins with an event of its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apps.base.identity import Place
from apps.site import BlockStart, block_started
from workflows.dataflow.replay import Clock
from workflows.records.journal import Journal
from workflows.runtime.kernel import Kernel, root_cause
from workflows.strategies.base import BlockEnded, BlockStarted, Event, SiteFacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from parsl.dataflow.futures import AppFuture

    from site_configs.library.site import Site

BLOCKS_AT_ONCE = 1
DRIVER_ENDED = "the driver that held it has ended"
Handler = tuple["Callable[..., Event | None]", tuple[Any, ...]]


def facts_of(site: Site, samples: int) -> SiteFacts:
    """Return the facts of a site that a strategy receives."""
    return SiteFacts(site.name, samples, BLOCKS_AT_ONCE, float(site.block.walltime_s) if site.block else None)


class BlockEvents:
    """Carries out a strategy's block requests and releases, and makes events of what follows.

    Args:
        sites: of the campaign.
        kernel: the running Parsl.
        journal: of the run.
        clock: of the campaign.
        put: hands a call to the engine's own thread.
    """

    def __init__(
        self, sites: dict[str, Site], kernel: Kernel, journal: Journal, clock: Clock, put: Callable[[Handler], None]
    ) -> None:
        self.sites, self.kernel, self.journal, self.clock, self.put = sites, kernel, journal, clock, put
        self.live = False  # False while recorded events are replayed: nothing is submitted
        self.asked_s: dict[str, float] = {}  # site -> time of its open request
        self.running: dict[str, str] = {}  # site -> Parsl's id of its block
        self.released: set[str] = set()

    def go_live(self) -> list[BlockEnded]:
        """End the replay: submit the open requests again, and return the ends of the earlier driver's blocks."""
        self.live = True
        for site in self.asked_s:
            self._submit(site)
        return [BlockEnded(self.clock.now(), site, DRIVER_ENDED) for site in self.running]

    def request(self, site: str, now_s: float) -> None:
        """Request a block at a site, unless it has one or waits for one."""
        if site in self.asked_s or site in self.running:
            return
        self.asked_s[site] = now_s
        if self.live:
            self._submit(site)

    def release(self, site: str) -> None:
        """Give a site's block back once it is idle."""
        if self.live and site in self.running:
            self.released.add(site)

    def remember(self, event: Event) -> None:
        """Follow an event that the strategy is about to receive."""
        if isinstance(event, BlockStarted):
            self.asked_s.pop(event.site, None)
            self.running.setdefault(event.site, "")
        if isinstance(event, BlockEnded):
            self.asked_s.pop(event.site, None)
            self.running.pop(event.site, None)
            self.released.discard(event.site)

    def look(self) -> BlockEnded | None:
        """Return the end of a block that has ended since the last call, or None."""
        for site, block in self.running.items():
            if site in self.released and self.kernel.give_back(site):
                return BlockEnded(self.clock.now(), site, "released")
            reason = self.kernel.block_end(site, block)
            if reason is not None:
                return BlockEnded(self.clock.now(), site, reason)
        return None

    def _submit(self, site: str) -> None:
        future = self.kernel.submit(block_started, Place(site=site, round=0), on=site, remember=False)
        future.add_done_callback(lambda done: self.put((self._answered, (site, done))))

    def _answered(self, site: str, future: AppFuture) -> Event | None:
        error, now_s = root_cause(future), self.clock.now()
        if error is not None:
            self.journal.write("task_failed", app="block_started", site=site, round=0, reason=str(error))
            return BlockEnded(now_s, site, str(error))
        answer: BlockStart = future.result()
        self.running[site] = answer["block"]
        left_s = answer["left_s"]
        ends_s = None if left_s is None else now_s + left_s
        return BlockStarted(now_s, site, self._wait_s(site, now_s, ends_s), ends_s)

    def _wait_s(self, site: str, now_s: float, ends_s: float | None) -> float:
        """Return the seconds in the queue; a block that already runs when it is requested has not waited."""
        block, began_s = self.sites[site].block, now_s
        if block is not None and ends_s is not None:
            began_s = min(now_s, ends_s - block.walltime_s)
        return max(0.0, began_s - self.asked_s[site])
