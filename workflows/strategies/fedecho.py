"""FedEcho: made for batch queues. Absent sites are heard as an echo that fades as the model follows it.

Behind queues one site trains for an hour while others wait for hours or days. Averaging waits for the slowest,
asynchronous mixing forgets who is absent, and a memory of old updates either holds the model back (AREA: the site's
old *model* counts) or drives it on for ever (MIFA: the site's old *change* counts each time).

Derivation. Let D_j(x) be the change that site j's local training makes from the model x. Averaging with everybody
present moves x by sum_j p_j D_j(x). An absent site's D_j is known only at the model b_j that it last started from:
D_j(b_j) = y_j - b_j. Local training contracts towards the site's own optimum: for gradient descent of K steps at rate
eta on a quadratic with Hessian H, D_j(x) = -(I - (I - eta H)^K)(x - x_j*), hence exactly

    D_j(x) = D_j(b_j) - C (x - b_j),   C = I - (I - eta H)^K,   0 <= C <= I,

and with one number kappa in [0, 1] in place of the matrix C the estimate of an absent site's change is its last change
less kappa times what the model has moved since, with kappa = 1 - (1 - kappa_1)^U for U steps. The estimate carries the
model up to D / kappa away, and with it the noise of the few batches that D was made of: so it is taken over the last
W words of the site, each with the model that it started from (``words``). A merge then makes the step that averaging
with everybody would make, as the gradient of a server with momentum:

    D_j ~ 1/W sum_w (U / K_w) (y_w - b_w) - kappa (x - mean b_w),   U = mean of the steps in this merge
    v <- beta v + sum_j q_j D_j,   x <- x + r v,   beta = min(0.8, 1 - 1/n),   q_j = p_j / sum of p over sites heard

kappa = 1 gives AREA's memory, kappa = 0 MIFA's. In between an echo is strong while the model has not yet followed it,
ends by itself once it has, and turns into a pull back towards b_j + D_j / kappa if others pull too far: forgetting is
bounded however long a site is away. The weights sum to one: one affine combination of stored updates and models, and
no site keeps a state. U / K_w (at most 3) makes partial work count as whole work, as in FedNova, so that no site gains
by being fast. As 0 <= C <= I, the server's step is stable for r < 2 (1 + beta) with everybody there.

A round is made of the n sites that are there: a merge waits for those that train at the moment, as long as they are
expected within ``hold`` lengths of an order. A site alone is merged at once and without momentum, which would drive
the model along its own data; with all sites there it is averaging with momentum. A block that starts while its site's
last word waits for a merge is given no work before it: an old model would put the site out of step for good.

The queue is treated as what it is:

* late binding: a block is asked for without a model; it gets the newest one when it starts, so that time in the queue
  makes nothing stale;
* asking early: while a block runs the next one already waits, as far as the queue's limit per user allows;
* work until the cut: an order is as long as the slowest site needs for its steps and its transfers, for fast sites
  too; who joins works until the others are done, if that is half an order at least;
* work to the end: the last order in a block is cut to the time that is left; a block with too little is given back.

Each idea can be switched off (``memory``, ``words: 1``, ``gather``, ``momentum``, ``late_binding``, ``early``,
``stretch``, ``fit``). It loses: to the first hour of a site nothing can be known of it, so that a target that needs
every site is not reached before the slowest queue has let us in once; and where nobody waits, it is averaging with
momentum and some more steps, little better. The server reads W updates and models of each absent site: take a small W
where these are large. Tried and left out: two orders a site at once, momentum at every arrival (both feed on their
own delay), weights by samples, a smaller step for a part of the sites.

Related: AREA (arXiv 2405.10123), MIFA (NeurIPS 2021), FedNova (arXiv 2007.07481).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from workflows.console.units import plural
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
    SetTimer,
    SiteFailed,
    Stop,
    StrategySection,
    TimerFired,
    UpdateArrived,
    Weights,
)
from workflows.strategies.echo import Word, echoed
from workflows.strategies.ledger import Ledger, Order, as_plain, from_plain, shares


class FedEchoSection(StrategySection):
    """``strategy: {name: fedecho}``."""

    name: Literal["fedecho"]
    kappa: float = Field(default=0.005, ge=0, le=1)  # contraction of one local step
    rate: PositiveFloat = 2.0  # r
    most_momentum: float = Field(default=0.8, ge=0, lt=1)
    weights: Weights = "equal"
    memory: bool = True
    words: PositiveInt = 8  # W: updates of a site that its echo is made of
    gather: bool = True
    hold: PositiveFloat = 4.0  # how long others are waited for, in lengths of an order
    momentum: bool = True
    late_binding: bool = True
    early: bool = True
    stretch: bool = True
    most_stretch: float = Field(default=4.0, ge=1)  # of an order's steps
    fit: bool = True
    least_steps: PositiveInt = 3  # that are worth an order
    saving_s: NonNegativeFloat = 60.0  # kept free at the end of a block
    patience: PositiveInt = 3  # failures in a row after which a site is left out

    def strategy(self, rounds: int, steps: int) -> FedEcho:
        return FedEcho(rounds, steps, self)


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
    words: dict[str, list[Word]] = field(default_factory=dict)  # of each site, the newest last
    fresh: list[str] = field(default_factory=list)  # sites heard since the last merge
    blocks: dict[str, Blocks] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)  # the last seconds a step
    travel_s: dict[str, float] = field(default_factory=dict)  # the last order's way out and back
    woken: int = -1  # the version for which a timer is set


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
            case TimerFired():
                memory.woken = -1
                return self._round(event.time_s)
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
        return self._ask(event.site, event.time_s, new=True)

    def _closed(self, event: UpdateArrived | SiteFailed, order: Order) -> list[Action]:
        memory, section = self.memory, self.section
        if isinstance(event, UpdateArrived) and event.steps_done > 0:
            self._measure(event, order)
            words = [*memory.words.get(order.site, []), Word(event.task, order.version, event.steps_done)]
            memory.words[order.site] = words[-section.words :]
            memory.fresh = [*(site for site in memory.fresh if site != order.site), order.site]
        return [*self._ask(order.site, event.time_s), *self._round(event.time_s), *self._given_up()]

    def _given_up(self) -> list[Action]:
        """The end, once no site is left to be asked."""
        patience = self.section.patience
        if all(self.memory.ledger.failures.get(site, 0) >= patience for site in self.memory.ledger.samples):
            return [Stop(f"every site has failed {plural(patience, 'time')} in a row")]
        return []

    def _measure(self, event: UpdateArrived, order: Order) -> None:
        self.memory.step_s[order.site] = event.train_s / event.steps_done
        travel_s = event.time_s - order.asked_s - event.train_s - event.wait_s
        self.memory.travel_s[order.site] = max(0.0, travel_s)

    # -- merges -------------------------------------------------------------------------------------------------

    def _round(self, now_s: float) -> list[Action]:
        """A merge and new work, if there is news and nobody to wait for."""
        memory = self.memory
        awaited = [order for order in memory.ledger.out.values() if memory.fresh and self._is_awaited(order, now_s)]
        if awaited:
            return self._wake(max(map(self._due_s, awaited)) + self.section.hold * self._length_s() + 1.0)
        if not memory.fresh:
            return []
        made, fresh, memory.fresh = self._merge(), memory.fresh, []
        if memory.version >= self.rounds:
            return [made, Stop()]
        return [made, *(action for site in fresh for action in self._ask(site, now_s))]

    def _wake(self, at_s: float) -> list[Action]:
        """A timer for when waiting is in vain, one for each merge."""
        memory = self.memory
        if memory.woken == memory.version:
            return []
        memory.woken = memory.version
        return [SetTimer(f"merge {memory.version + 1}", at_s)]

    def _is_awaited(self, order: Order, now_s: float) -> bool:
        """Whether a site trains in a block and should be done about now."""
        if not (self.section.gather and self.memory.blocks[order.site].ends_s):
            return False
        return abs(self._due_s(order) - now_s) <= self.section.hold * self._length_s()

    def _due_s(self, order: Order) -> float:
        """When an order should be back; of a site not met yet, as if it were at once."""
        step_s, travel_s = self.memory.step_s.get(order.site, 0.0), self.memory.travel_s.get(order.site, 0.0)
        return order.asked_s + travel_s + order.steps * step_s

    def _length_s(self) -> float:
        """Of an order and its way: what the slowest known site needs for its steps."""
        step_s, travel_s = self.memory.step_s, self.memory.travel_s
        return max(self.steps * step_s[site] + travel_s[site] for site in step_s)

    def _merge(self) -> Aggregate:
        """The step above over all sites that were heard; without memory over those of this round alone."""
        memory, section = self.memory, self.section
        counted = {site: words[-1:] if site in memory.fresh else words for site, words in memory.words.items()}
        heard = {site: words for site, words in counted.items() if section.memory or site in memory.fresh}
        unit = sum(words[-1].steps for site, words in heard.items() if site in memory.fresh) / len(memory.fresh)
        kappa = 1 - (1 - section.kappa) ** unit if section.memory else 0.0
        share = shares(memory.ledger.samples, heard if section.memory else memory.ledger.samples, section.weights)
        base, memory.version = memory.version, memory.version + 1
        beta = min(section.most_momentum, 1 - 1 / len(memory.fresh)) if section.momentum else 0.0
        rule = ServerRule("momentum", section.rate, beta)
        return echoed(memory.version, base, [(share[site], words) for site, words in heard.items()], unit, kappa, rule)

    # -- blocks and orders --------------------------------------------------------------------------------------

    def _ask(self, site: str, now_s: float, new: bool = False) -> list[Action]:
        """Work for a site that has a block and none to do, and requests as far as the limit goes.

        A new block always gets work, however long the last way was: it would never come to any otherwise.
        """
        memory = self.memory
        if memory.ledger.failures.get(site, 0) >= self.section.patience:
            return []
        busy = site in memory.ledger.busy() or site in memory.fresh
        if not self.section.late_binding:
            return [] if busy else [memory.ledger.order(site, memory.version, self._wanted(site, now_s), now_s)]
        running, actions = memory.blocks[site].ends_s, self._requests(site)
        if running and not busy:
            least = min(self.section.least_steps, self.steps)
            steps = min(max(least, self._wanted(site, now_s)), self._fitting(site, running[-1], now_s))
            if steps < least and not new:
                return [*actions, ReleaseBlock(site)]
            actions.append(memory.ledger.order(site, memory.version, max(steps, least), now_s))
        return actions

    def _requests(self, site: str) -> list[Action]:
        blocks = self.memory.blocks[site]
        missing = max(0, blocks.limit - blocks.waiting - len(blocks.ends_s))
        blocks.waiting += missing
        return [RequestBlock(site)] * missing

    def _wanted(self, site: str, now_s: float) -> int:
        """Steps of the next order: until the others at work are done, or as long as the slowest site needs for all."""
        memory = self.memory
        if not self.section.stretch or not memory.step_s.get(site):  # not met, or too quick to be measured
            return self.steps
        length_s = self._length_s()
        known = [order for order in memory.ledger.out.values() if order.site in memory.step_s]
        left_s = max(map(self._due_s, known), default=0.0) - now_s
        if left_s >= length_s / 2:
            length_s = min(length_s, left_s)
        fitting = round((length_s - memory.travel_s[site]) / memory.step_s[site])
        return max(1, min(fitting, int(self.steps * self.section.most_stretch)))

    def _fitting(self, site: str, ends_s: float | None, now_s: float) -> int:
        """Steps that a block has time for; those of the longest order where that is not known."""
        step_s, most = self.memory.step_s.get(site), int(self.steps * self.section.most_stretch)
        if not self.section.fit or ends_s is None or not step_s:
            return most
        left_s = ends_s - now_s - self.memory.travel_s.get(site, 0.0) - self.section.saving_s
        return min(most, int(left_s / (1.05 * step_s)))

    def state(self) -> dict[str, Any]:
        return as_plain(self.memory)

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state)
