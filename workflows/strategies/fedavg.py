"""FedAvg: every site trains from the same model, the mean of their models is the next one.

    x <- sum_k p_k x_k,   p_k = n_k / n  (``weights: samples``)  or  1 / m  (``weights: equal``)

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017
(arXiv 1602.05629).

A site that fails in a round is left out of its mean if at least ``quorum`` updates are there, and asked again in
the next round. Without a quorum in the campaign every site is needed.
"""

from __future__ import annotations

from typing import Any, Literal

from workflows.strategies.base import (
    Action,
    Aggregate,
    CampaignStarted,
    Event,
    SiteFailed,
    Stop,
    Train,
    UpdateArrived,
)

Weights = Literal["samples", "equal"]


class FedAvg:
    """The synchronous algorithm; see the module for formula and source."""

    def __init__(self, rounds: int, steps: int, weights: Weights, quorum: int | None) -> None:
        self.rounds, self.steps, self.weights, self.quorum = rounds, steps, weights, quorum
        self.sites: dict[str, int] = {}  # name -> samples, in the order of the campaign
        self.round = 0
        self.waiting: dict[int, str] = {}  # task -> site
        self.arrived: dict[str, int] = {}  # site -> task
        self.failed: dict[str, str] = {}  # site -> reason
        self.next_task = 0

    def react(self, event: Event) -> list[Action]:
        if isinstance(event, CampaignStarted):
            self.sites = {site.name: site.samples for site in event.sites}
            return self._begin_round()
        if isinstance(event, UpdateArrived | SiteFailed) and event.task in self.waiting:
            site = self.waiting.pop(event.task)
            if isinstance(event, UpdateArrived):
                self.arrived[site] = event.task
            else:
                self.failed[site] = event.reason
            return self._end_round() if not self.waiting else []
        return []

    def _begin_round(self) -> list[Action]:
        version, self.round = self.round, self.round + 1
        self.arrived, self.failed = {}, {}
        orders: list[Action] = []
        for site in self.sites:
            task, self.next_task = self.next_task, self.next_task + 1
            self.waiting[task] = site
            orders.append(Train(task, site, version, self.round, version * self.steps))
        return orders

    def _end_round(self) -> list[Action]:
        needed = self.quorum or len(self.sites)
        if len(self.arrived) < needed:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self.failed.items())
            have = f"{len(self.arrived)} of {len(self.sites)} updates"
            return [Stop(f"round {self.round} has {have} and needs {needed}: {reasons}")]
        mean = Aggregate(self.round, self.round - 1, tuple(self._weighted()))
        return [mean, *(self._begin_round() if self.round < self.rounds else [Stop()])]

    def _weighted(self) -> list[tuple[int, float]]:
        """Tasks and weights in the order of the campaign's sites, whatever the order of arrival."""
        present = [site for site in self.sites if site in self.arrived]
        raw = {site: self.sites[site] if self.weights == "samples" else 1 for site in present}
        total = sum(raw.values())
        return [(self.arrived[site], raw[site] / total) for site in present]

    def state(self) -> dict[str, Any]:
        return {
            "sites": dict(self.sites), "round": self.round, "next_task": self.next_task,
            "waiting": {str(task): site for task, site in self.waiting.items()},
            "arrived": dict(self.arrived), "failed": dict(self.failed),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.sites, self.round, self.next_task = dict(state["sites"]), state["round"], state["next_task"]
        self.waiting = {int(task): site for task, site in state["waiting"].items()}
        self.arrived, self.failed = dict(state["arrived"]), dict(state["failed"])
