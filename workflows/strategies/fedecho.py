"""FedEcho: made for batch queues. The last updates of an absent site stay in the model as an echo that fades.

Behind queues one site trains for an hour while others wait for hours or days. Averaging waits for the slowest,
asynchronous mixing forgets absent sites, and a memory of old updates either holds the model back (AREA: the site's
old *model* counts) or keeps driving it (MIFA: the site's old *change* counts each time).

Derivation. Let D_j(x) be the change that site j's local training makes from the model x. Averaging with all sites
present moves x by sum_j p_j D_j(x). An absent site's D_j is known only at the model b_j that it last started from:
D_j(b_j) = y_j - b_j. Local training contracts towards the site's own optimum: for gradient descent of K steps at rate
eta on a quadratic with Hessian H, D_j(x) = -(I - (I - eta H)^K)(x - x_j*), hence exactly

    D_j(x) = D_j(b_j) - C (x - b_j),   C = I - (I - eta H)^K,   0 <= C <= I,

and with one number kappa in [0, 1] in place of the matrix C the estimate of an absent site's change is its last change
less kappa times the movement of the model since then, with kappa = 1 - (1 - kappa_1)^U for U steps. The estimate moves
the model up to D / kappa away, and with it the noise of the few batches that D was made of: so it is taken over the
last W updates of the site, each with the model that it started from (key ``words``). A merge then makes the step that
averaging over all sites would make, as the gradient of a server with momentum:

    D_j ~ 1/W sum_w (U / K_w) (y_w - b_w) - kappa (x - mean b_w),   U = mean of the steps in this merge
    v <- beta v + sum_j q_j D_j,   x <- x + r v,   beta = min(0.8, 1 - 1/n),   q_j = p_j / sum of p over known sites

kappa = 1 gives AREA's memory, kappa = 0 MIFA's. In between an echo is strong until the model has followed it, then
vanishes, and turns into a pull back towards b_j + D_j / kappa if others pull too far: forgetting is bounded however
long a site is away. The weights sum to one: one affine combination of stored updates and models, and no site keeps a
state. U / K_w (at most 3) scales partial work to whole work, as in FedNova, so that fast sites get no extra weight.
As 0 <= C <= I, the server's step is stable for r < 2 (1 + beta) with all sites present. None of several sites has more
than four fifths of the weights of the changes in a merge, and a length is at most four times the longest time from a
request to its update so far, by the server's clock: steps and times are a site's own word.

A round consists of the n sites that are present: a merge waits for the sites that train at the moment, as long as they
are expected within ``hold`` lengths of a request. A single site is merged at once and without momentum, which would
drive the model along its own data; with all sites present it is averaging with momentum. A block that starts while its
site's last update waits for a merge gets no work before the merge: with an old model the site would stay out of step.

The queue is used as it is:

* late binding: a block is requested without a model; it gets the newest one when it starts, so that time in the queue
  makes nothing stale;
* early requests: while a block runs the next one already waits, as far as the queue's limit per user allows;
* work until the merge: a request is as long as the slowest site needs for its steps and its transfers, for fast sites
  too; a site that joins works until the others are done, if that is at least half a request;
* work until the end: the last request in a block is cut to the time that is left; a block with too little is released.

Each idea can be switched off (``memory``, ``words: 1``, ``gather``, ``momentum``, ``late_binding``, ``early``,
``stretch``, ``fit``). Limits: before the first update of a site nothing is known of it, so that a target that needs
every site is not reached before the slowest queue has started one block; and where no site waits, it is averaging with
momentum and some more steps, little better. The server reads W updates and models of each absent site: take a small W
where these are large. Tried and left out: two requests per site at once, momentum at every arrival (both amplify their
own delay), weights by samples, a smaller step for a part of the sites.

Related: AREA (arXiv 2405.10123), MIFA (NeurIPS 2021), FedNova (arXiv 2007.07481).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    SetTimer,
    SiteFailed,
    Stop,
    StrategySection,
    TimerFired,
    UpdateArrived,
    Weights,
)
from workflows.strategies.echo import EchoUpdate, echoed
from workflows.strategies.requests import OpenRequest, OpenRequests, seconds_a_step, shares

LONGEST = 4.0  # length of a request, in times that the server has seen from a request to its update


class FedEchoSection(StrategySection):
    """``strategy: {name: fedecho}``."""

    name: Literal["fedecho"]
    kappa: float = Field(default=0.005, ge=0, le=1)  # contraction of one local step
    rate: PositiveFloat = 2.0  # r
    most_momentum: float = Field(default=0.8, ge=0, lt=1)
    weights: Weights = "equal"
    memory: bool = True
    words: PositiveInt = 8  # W: last updates of a site that its echo is made of
    gather: bool = True
    hold: PositiveFloat = 4.0  # longest wait for other sites, in lengths of a request
    momentum: bool = True
    late_binding: bool = True
    early: bool = True
    stretch: bool = True
    most_stretch: float = Field(default=4.0, ge=1)  # longest request, in multiples of ``steps``
    fit: bool = True
    least_steps: PositiveInt = 3  # shortest request
    saving_s: NonNegativeFloat = 60.0  # kept free at the end of a block
    patience: PositiveInt = 3  # failures in a row after which a site is left out

    def strategy(self, rounds: int, steps: int) -> FedEcho:
        return FedEcho(rounds, steps, self)


@dataclass
class SiteBlocks:
    """Our block requests and running blocks at a site's queue."""

    limit: int = 1
    waiting: int = 0
    ends_s: list[float | None] = field(default_factory=list)  # of the running blocks, the oldest first


@dataclass
class FedEchoState:
    """State of FedEcho."""

    requests: OpenRequests = field(default_factory=OpenRequests)
    version: int = 0
    updates: dict[str, list[EchoUpdate]] = field(default_factory=dict)  # last updates of each site, the newest last
    fresh: list[str] = field(default_factory=list)  # sites with an update since the last merge
    blocks: dict[str, SiteBlocks] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)  # seconds a step of the last request
    travel_s: dict[str, float] = field(default_factory=dict)  # transfers to and from the site of the last request
    longest_s: float = 0.0  # from a request to its update, by the server's own clock
    timer_version: int = -1  # model version for which a timer is set


class FedEcho:
    """The algorithm; see the module for formula and reasons."""

    def __init__(self, rounds: int, steps: int, section: FedEchoSection) -> None:
        self.rounds, self.steps, self.section, self.state = rounds, steps, section, FedEchoState()

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""
        state = self.state
        match event:
            case CampaignStarted():
                state.requests.enrol(event.sites)
                early = self.section.early
                state.blocks = {site.name: SiteBlocks(site.max_blocks if early else 1) for site in event.sites}
                return [action for site in state.blocks for action in self._request(site, event.time_s)]
            case BlockStarted():
                return self._block_started(event)
            case BlockEnded():
                blocks = state.blocks[event.site]
                if not blocks.ends_s and blocks.waiting:  # the request has failed
                    blocks.waiting -= 1
                    state.requests.count_failure(event.site)
                blocks.ends_s = blocks.ends_s[1:]
                asked = self._request(event.site, event.time_s) if self.section.late_binding else []
                return [*asked, *self._round(event.time_s), *state.requests.stop_if_none_left(self.section.patience)]
            case TimerFired():
                state.timer_version = -1
                return self._round(event.time_s)
            case UpdateArrived() | SiteFailed():
                request = state.requests.close(event)
                return self._closed(event, request) if request else []
        return []

    def _block_started(self, event: BlockStarted) -> list[Action]:
        blocks = self.state.blocks[event.site]
        blocks.waiting = max(0, blocks.waiting - 1)
        blocks.ends_s.append(event.ends_s)
        if not self.section.late_binding:
            return self._block_requests(event.site) if self.section.early else []
        return self._request(event.site, event.time_s, new=True)

    def _closed(self, event: UpdateArrived | SiteFailed, request: OpenRequest) -> list[Action]:
        state, section = self.state, self.section
        if isinstance(event, UpdateArrived) and event.steps_done > 0:
            self._measure(event, request)
            updates = [*state.updates.get(request.site, []), EchoUpdate(event.task, request.version, event.steps_done)]
            state.updates[request.site] = updates[-section.words :]
            state.fresh = [*(site for site in state.fresh if site != request.site), request.site]
        return [
            *self._request(request.site, event.time_s),
            *self._round(event.time_s),
            *state.requests.stop_if_none_left(self.section.patience),
        ]

    def _measure(self, event: UpdateArrived, request: OpenRequest) -> None:
        passed_s = event.time_s - request.requested_s
        self.state.longest_s = max(self.state.longest_s, passed_s)
        self.state.step_s[request.site] = seconds_a_step(event)
        self.state.travel_s[request.site] = max(0.0, passed_s - event.train_s - event.wait_s)

    # -- merges -------------------------------------------------------------------------------------------------

    def _round(self, now_s: float) -> list[Action]:
        """Return a merge and new requests, if there is a new update and no site to wait for."""
        state = self.state
        if not state.fresh:
            return []
        awaited = [request for request in state.requests.by_task.values() if self._is_awaited(request, now_s)]
        if awaited:
            return self._timer(max(map(self._due_s, awaited)) + self.section.hold * self._length_s() + 1.0)
        made, fresh, state.fresh = self._merge(), state.fresh, []
        if state.version >= self.rounds:
            return [made, Stop()]
        return [made, *(action for site in fresh for action in self._request(site, now_s))]

    def _timer(self, at_s: float) -> list[Action]:
        """Return a timer for the end of waiting, at most one for each merge."""
        state = self.state
        if state.timer_version == state.version:
            return []
        state.timer_version = state.version
        return [SetTimer(f"merge {state.version + 1}", at_s)]

    def _is_awaited(self, request: OpenRequest, now_s: float) -> bool:
        """Return True if a site trains in a block and its update is expected about now."""
        if not (self.section.gather and self.state.blocks[request.site].ends_s):
            return False
        return abs(self._due_s(request) - now_s) <= self.section.hold * self._length_s()

    def _due_s(self, request: OpenRequest) -> float:
        """Return the expected arrival of an update; for a site without earlier updates that of an immediate one."""
        step_s, travel_s = self.state.step_s.get(request.site, 0.0), self.state.travel_s.get(request.site, 0.0)
        return request.requested_s + travel_s + request.steps * step_s

    def _length_s(self) -> float:
        """Return the length of a request with its transfers: the time that the slowest known site needs.

        Its time for a step is the site's own word: the length is bounded by what the server has seen itself.
        """
        step_s, travel_s = self.state.step_s, self.state.travel_s
        slowest_s = max(self.steps * step_s[site] + travel_s[site] for site in step_s)
        return min(LONGEST * self.state.longest_s, slowest_s)

    def _merge(self) -> Aggregate:
        """Return the step of the module's formula over all known sites, or without memory over this round's."""
        state, section = self.state, self.section
        counted = {site: own[-1:] if site in state.fresh else own for site, own in state.updates.items()}
        used = {site: own for site, own in counted.items() if section.memory or site in state.fresh}
        unit = sum(own[-1].steps for site, own in used.items() if site in state.fresh) / len(state.fresh)
        kappa = 1 - (1 - section.kappa) ** unit if section.memory else 0.0
        share = shares(state.requests.samples, used if section.memory else state.requests.samples, section.weights)
        base, state.version = state.version, state.version + 1
        beta = min(section.most_momentum, 1 - 1 / len(state.fresh)) if section.momentum else 0.0
        rule = ServerRule("momentum", section.rate, beta)
        contributions = [(site, share[site], own) for site, own in used.items()]
        return echoed(state.version, base, contributions, unit, kappa, rule)

    # -- blocks and requests ------------------------------------------------------------------------------------

    def _request(self, site: str, now_s: float, new: bool = False) -> list[Action]:
        """Return a training request for a site with a block and no work, and block requests up to the queue's limit.

        A new block always gets work, however long the last transfers were: it would never get any otherwise.
        """
        state = self.state
        if state.requests.is_excluded(site, self.section.patience):
            return []
        busy = site in state.requests.busy() or site in state.fresh
        if not self.section.late_binding:
            if busy:
                return []
            return [state.requests.open(site, state.version, self._wanted(site, now_s), now_s)]
        running, actions = state.blocks[site].ends_s, self._block_requests(site)
        if running and not busy:
            least = min(self.section.least_steps, self.steps)
            steps = min(max(least, self._wanted(site, now_s)), self._fitting(site, running[-1], now_s))
            if steps < least and not new:
                return [*actions, ReleaseBlock(site)]
            actions.append(state.requests.open(site, state.version, max(steps, least), now_s))
        return actions

    def _block_requests(self, site: str) -> list[Action]:
        blocks = self.state.blocks[site]
        missing = max(0, blocks.limit - blocks.waiting - len(blocks.ends_s))
        blocks.waiting += missing
        return [RequestBlock(site)] * missing

    def _wanted(self, site: str, now_s: float) -> int:
        """Return the steps of the next request: until the others are done, or as long as the slowest site needs."""
        state = self.state
        if not self.section.stretch or not state.step_s.get(site):  # unknown, or too short to be measured
            return self.steps
        length_s = self._length_s()
        known = [request for request in state.requests.by_task.values() if request.site in state.step_s]
        left_s = max(map(self._due_s, known), default=0.0) - now_s
        if left_s >= length_s / 2:
            length_s = min(length_s, left_s)
        fitting = round((length_s - state.travel_s[site]) / state.step_s[site])
        return max(1, min(fitting, int(self.steps * self.section.most_stretch)))

    def _fitting(self, site: str, ends_s: float | None, now_s: float) -> int:
        """Return the steps that a block has time for; those of the longest request where that is unknown."""
        step_s, most = self.state.step_s.get(site), int(self.steps * self.section.most_stretch)
        if not self.section.fit or ends_s is None or not step_s:
            return most
        left_s = ends_s - now_s - self.state.travel_s.get(site, 0.0) - self.section.saving_s
        return min(most, int(left_s / (1.05 * step_s)))
