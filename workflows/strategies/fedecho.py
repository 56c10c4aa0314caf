"""FedEcho: made for batch queues. Absent sites are heard as an echo that fades as the model follows it.

Where machines stand behind queues, one site trains for an hour while the others wait for hours or days. Averaging
waits for the slowest; asynchronous mixing forgets who is absent; a memory of old updates either holds the model back
(AREA: the site's old *model* counts) or drives it on for ever (MIFA: the site's old *change* counts each time).

Derivation. Let D_j(x) be the change that site j's local training makes from the model x. Averaging with everybody
present moves x by sum_j p_j D_j(x). An absent site's D_j is known only at the model b_j that it last started from:
D_j(b_j) = y_j - b_j. Local training contracts towards the site's own optimum: for gradient descent of K steps at rate
eta on a quadratic with Hessian H, D_j(x) = -(I - (I - eta H)^K)(x - x_j*), hence exactly

    D_j(x) = D_j(b_j) - C (x - b_j),   C = I - (I - eta H)^K,   0 <= C <= I,

and with one number kappa in [0, 1] in place of the matrix C the estimate of an absent site's change is its last change
less kappa times what the model has moved since, with kappa = 1 - (1 - kappa_1)^K for K steps. A merge then makes the
step that averaging with everybody would make, as the gradient of a server with momentum:

    g = sum_j q_j ( s_j (y_j - b_j) - kappa (x - b_j) ),    q_j = p_j / sum of p over sites heard so far
    v <- (1 - 1/n) v + g;   x <- x + rate v

kappa = 1 gives AREA's memory, kappa = 0 MIFA's. In between an echo is strong while the model has not yet followed it,
ends by itself once it has, and turns into a pull back towards b_j + (y_j - b_j) / kappa if others pull too far:
forgetting is bounded however long a site is away. The weights sum to one: it is one affine combination of stored
updates and models, one pass at the server, and no site needs to keep a state. ``s_j`` (steps asked / steps done, at
most 2) makes partial work count as whole work, as in FedNova, so that no site gains by being fast.

A round is made of the sites that are there: a merge waits for those that train at the moment, as long as they are
expected within ``hold_s``; n is the number that took part. A site alone is merged at once and without momentum, which
would drive the model along its own data; n of a active sites make a step of (n/a)^(1/2); with all sites there the
algorithm is averaging with momentum (1 - 1/m).

The queue is treated as what it is:

* late binding: a block is asked for without a model; it gets the newest one when it starts, so that time in the queue
  makes nothing stale;
* asking early: while a block runs the next one already waits, as far as the queue's limit per user allows;
* work to the end: the last order in a block is cut to the time that is left; a block with too little is given back.

Each idea can be switched off (``memory``, ``gather``, ``momentum``, ``late_binding``, ``early``, ``fit``). It loses:
to the first hour of a site nothing can be known of it, so that a target that needs every site is not reached before
the slowest queue has let us in once; and where nobody waits, it is averaging with momentum, no better. Tried and left
out: two orders a site at once, a momentum at every arrival (both feed on their own delay), weights by samples.

Related: AREA (arXiv 2405.10123), MIFA (NeurIPS 2021), FedNova (arXiv 2007.07481).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    ServerRule,
    SiteFailed,
    Stop,
    UpdateArrived,
)
from workflows.strategies.ledger import Ledger, Order, as_plain, from_plain, shares
from workflows.strategies.section import Section, Weights


class FedEchoSection(Section):
    """``strategy: {name: fedecho}``."""

    name: Literal["fedecho"]
    kappa: float = Field(default=0.005, ge=0, le=1)  # contraction of one local step
    rate: PositiveFloat = 1.0
    weights: Weights = "equal"
    memory: bool = True
    gather: bool = True
    hold_s: PositiveFloat = 600.0  # how long others are waited for
    momentum: bool = True
    crowd: NonNegativeFloat = 0.5  # how much smaller the step of a part of the active sites is
    late_binding: bool = True
    early: bool = True
    fit: bool = True
    least_steps: PositiveInt = 5  # that are worth an order
    saving_s: NonNegativeFloat = 60.0  # kept free at the end of a block
    patience: PositiveInt = 3  # failures in a row after which a site is left out

    def strategy(self, rounds: int, steps: int) -> FedEcho:
        return FedEcho(rounds, steps, self)


@dataclass
class Word:
    """The last that was heard of a site."""

    task: int
    base: int  # the version it started from
    factor: float  # steps asked / steps done


@dataclass
class Blocks:
    """What of ours is at a site's queue."""

    limit: int = 1
    waiting: int = 0
    ends_s: list[float | None] = field(default_factory=list)  # of the running ones, the oldest first


@dataclass
class Memory:
    """What the strategy knows."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    words: dict[str, Word] = field(default_factory=dict)
    heard_s: dict[str, float] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)  # sites heard since the last merge
    blocks: dict[str, Blocks] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)  # the last seconds a step
    travel_s: dict[str, float] = field(default_factory=dict)  # the last order's way out and back


class FedEcho:
    """The algorithm; see the module for formula and reasons."""

    def __init__(self, rounds: int, steps: int, section: FedEchoSection) -> None:
        self.rounds, self.steps, self.section, self.memory = rounds, steps, section, Memory()

    def react(self, event: Event) -> list[Action]:
        memory = self.memory
        match event:
            case CampaignStarted():
                memory.ledger.enrol(event.sites)
                early = self.section.early
                memory.blocks = {site.name: Blocks(site.max_blocks if early else 1) for site in event.sites}
                return [action for site in memory.blocks for action in self._ask(site, event.time_s)]
            case BlockStarted():
                return self._block_started(event)
            case BlockEnded():
                blocks = memory.blocks[event.site]
                if not blocks.ends_s and blocks.waiting:  # it cannot be had
                    blocks.waiting -= 1
                    memory.ledger.failed(event.site)
                blocks.ends_s = blocks.ends_s[1:]
                asked = self._ask(event.site, event.time_s) if self.section.late_binding else []
                return [*asked, *self._round(event.time_s), *self._given_up()]
            case UpdateArrived() | SiteFailed():
                order = memory.ledger.close(event)
                return self._closed(event, order) if order else []
        return []

    def _block_started(self, event: BlockStarted) -> list[Action]:
        blocks = self.memory.blocks[event.site]
        blocks.waiting = max(0, blocks.waiting - 1)
        blocks.ends_s.append(event.ends_s)
        if not self.section.late_binding:
            return self._requests(event.site) if self.section.early else []
        return self._ask(event.site, event.time_s, fresh=True)

    def _closed(self, event: UpdateArrived | SiteFailed, order: Order) -> list[Action]:
        memory, before = self.memory, list[Action]()
        if isinstance(event, UpdateArrived) and event.steps_done > 0:
            if order.site in memory.fresh:  # heard a second time, from its next block: the first word counts too
                before = self._merged(event.time_s)
                if Stop() in before:
                    return before
            self._measure(event, order)
            memory.words[order.site] = Word(event.task, order.version, min(2.0, self.steps / event.steps_done))
            memory.heard_s[order.site] = event.time_s
            memory.fresh = [*(site for site in memory.fresh if site != order.site), order.site]
        asked = [] if order.site in memory.fresh else self._ask(order.site, event.time_s)
        return [*before, *asked, *self._round(event.time_s), *self._given_up()]

    def _given_up(self) -> list[Action]:
        """The end, once no site is left to be asked."""
        patience = self.section.patience
        if all(self.memory.ledger.failures.get(site, 0) >= patience for site in self.memory.ledger.samples):
            return [Stop(f"every site has failed {patience} times in a row")]
        return []

    def _round(self, now_s: float) -> list[Action]:
        """A merge and new work, if there is news and nobody to wait for."""
        memory = self.memory
        if not memory.fresh or any(self._is_awaited(site, now_s) for site in memory.blocks):
            return []
        return self._merged(now_s)

    def _merged(self, now_s: float) -> list[Action]:
        memory = self.memory
        made, fresh, memory.fresh = self._merge(now_s), memory.fresh, []
        if memory.version >= self.rounds:
            return [made, Stop()]
        return [made, *(action for site in fresh for action in self._ask(site, now_s))]

    def _is_awaited(self, site: str, now_s: float) -> bool:
        """Whether a site trains in a block and should be done about now."""
        step_s, running = self.memory.step_s.get(site), self.memory.blocks[site].ends_s
        orders = [order for order in self.memory.ledger.out.values() if order.site == site]
        if not (self.section.gather and running and orders and step_s):
            return False
        expected_s = orders[0].asked_s + self.memory.travel_s.get(site, 0.0) + orders[0].steps * step_s
        return abs(expected_s - now_s) <= self.section.hold_s

    def _measure(self, event: UpdateArrived, order: Order) -> None:
        self.memory.step_s[order.site] = event.train_s / event.steps_done
        travel_s = event.time_s - order.asked_s - event.train_s - event.wait_s
        self.memory.travel_s[order.site] = max(0.0, travel_s)

    def _merge(self, now_s: float) -> Aggregate:
        """The step above over all sites that were heard; without memory over those of this round alone."""
        memory, section = self.memory, self.section
        heard = {site: word for site, word in memory.words.items() if section.memory or site in memory.fresh}
        base, memory.version = memory.version, memory.version + 1
        kappa = 1 - (1 - section.kappa) ** self.steps if section.memory else 0.0
        share = shares(memory.ledger.samples, heard if section.memory else memory.ledger.samples, section.weights)
        models = {base: 1.0}
        for site, word in heard.items():
            models[base] = models.get(base, 0.0) - kappa * share[site]
            models[word.base] = models.get(word.base, 0.0) - share[site] * (word.factor - kappa)
        parts = tuple((word.task, share[site] * word.factor) for site, word in heard.items())
        kept = tuple((version, weight) for version, weight in models.items() if weight)
        beta = 1 - 1 / len(memory.fresh) if section.momentum else 0.0
        rate = section.rate * (len(memory.fresh) / max(len(memory.fresh), len(self._active(now_s)))) ** section.crowd
        return Aggregate(memory.version, base, parts, kept, ServerRule("momentum", rate, beta))

    def _active(self, now_s: float) -> set[str]:
        """Sites that train, or were heard a moment ago: a part of them alone must not make the whole step again."""
        recent = {site for site, heard_s in self.memory.heard_s.items() if now_s - heard_s <= 2 * self.section.hold_s}
        return recent | {order.site for order in self.memory.ledger.out.values()}

    # -- blocks and orders --------------------------------------------------------------------------------------

    def _ask(self, site: str, now_s: float, fresh: bool = False) -> list[Action]:
        """Work for a site that has a block and none to do, and requests as far as the limit goes.

        A fresh block always gets work, however long the last way was: it would never come to any otherwise.
        """
        memory = self.memory
        if memory.ledger.failures.get(site, 0) >= self.section.patience:
            return []
        busy = site in memory.ledger.busy()
        if not self.section.late_binding:
            return [] if busy else [memory.ledger.order(site, memory.version, self.steps, now_s)]
        running, actions = memory.blocks[site].ends_s, self._requests(site)
        if running and not busy:
            steps = self._fitting(site, running[-1], now_s)
            least = min(self.section.least_steps, self.steps)
            if steps < least and not fresh:
                return [*actions, ReleaseBlock(site)]
            actions.append(memory.ledger.order(site, memory.version, max(steps, least), now_s))
        return actions

    def _requests(self, site: str) -> list[Action]:
        blocks = self.memory.blocks[site]
        missing = max(0, blocks.limit - blocks.waiting - len(blocks.ends_s))
        blocks.waiting += missing
        return [RequestBlock(site)] * missing

    def _fitting(self, site: str, ends_s: float | None, now_s: float) -> int:
        """Steps of the next order: all, or what the block has time for."""
        step_s = self.memory.step_s.get(site)
        if not self.section.fit or ends_s is None or step_s is None:
            return self.steps
        left_s = ends_s - now_s - self.memory.travel_s.get(site, 0.0) - self.section.saving_s
        return min(self.steps, int(left_s / (1.05 * step_s)))

    def state(self) -> dict[str, Any]:
        return as_plain(self.memory)

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state)
