"""Admission of updates by held-out loss: one that makes the model worse is put aside until somebody lets it in.

The model that a site sends is evaluated on the campaign's pooled test set, as for every report, before its update
counts. If its mean loss is more than ``checks.max_loss_increase`` nats per token above that of the model which the site
was sent, or not finite, the update is put aside: for the strategy the site has failed in this round. A decision is an
event of the journal, so that a resume comes to the same. ``--resume RUN --admit SITE:ROUND`` lets an update in while
its round is open; the journal records it, and the update arrives again without being trained again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from apps.base.errors import UpdateRefused, UserMistake
from workflows.dataflow.located import located
from workflows.dataflow.replay import recorded_events, withdraw_since
from workflows.planning.places import ServerPlace
from workflows.records.journal import Journal
from workflows.records.scores import GLOBAL
from workflows.strategies.base import Train

SITE_AND_ROUND = re.compile(r"([^:]+):([0-9]{1,9})")
Result = Future[Any]
Evaluate = Callable[[str, int, Any], Result]  # of a model, by its name, number and task


class PutAside(UpdateRefused):
    """An update that makes the model worse on the held-out records than the campaign allows."""


class Admission:
    """Decides whether updates count, by the losses of the models that they make.

    Args:
        bound: largest rise of the mean loss, nats per token; None: every update is admitted.
        journal: of the run; names the updates that were let in by hand.
        models: the global models, by version.
        evaluate: returns the evaluation of a model, the same one if it is asked for again.
        place: where models are evaluated.
    """

    def __init__(
        self,
        bound: float | None,
        journal: Journal,
        models: Mapping[int, Result],
        evaluate: Evaluate,
        place: ServerPlace,
    ) -> None:
        self.bound, self.models, self.evaluate, self.place = bound, models, evaluate, place
        self.admitted = {(r["site"], r["round"]) for r in journal.events("update_admitted")}

    def known(self, action: Train, update: Result, then: Callable[[], None]) -> bool:
        """Return True if the losses that decide on an update are known; else ask for them, and call ``then`` after.

        Args:
            action: the request that the update answers.
            update: its stage-in.
            then: called in any thread.
        """
        before, after = self._evaluations(action, update) or (None, None)
        if before is None or after is None or (before.done() and after.done()):
            return True
        before.add_done_callback(lambda _: after.add_done_callback(lambda _: then()))
        return False

    def refusal(self, action: Train, update: Result) -> PutAside | None:
        """Return why an update is put aside, or None: it counts.

        Raises:
            CrossfedError: a model could not be evaluated.
        """
        from workflows.runtime.kernel import root_cause  # loads Parsl

        evaluations = self._evaluations(action, update)
        if self.bound is None or evaluations is None:
            return None
        for evaluation in evaluations:
            if (error := root_cause(evaluation)) is not None:
                raise located(error, self.place, action.round)
        before, after = (evaluation.result()["mean_loss"] for evaluation in evaluations)
        if after <= before + self.bound:  # in this form a NaN is put aside
            return None
        return PutAside(
            f"update put aside: with it the mean held-out loss is {after:.4g}, more than {self.bound:g} above"
            f" {before:.4g}, that of the model it started from (checks.max_loss_increase). If the update is sound,"
            f" resume with --admit {action.site}:{action.round}",
            site=action.site,
            round=action.round,
        )

    def _evaluations(self, action: Train, update: Result) -> tuple[Result, Result] | None:
        """Return the evaluations of the model before and after a site's training; None if they decide nothing."""
        if self.bound is None or (action.site, action.round) in self.admitted:
            return None
        before = self.evaluate(GLOBAL, action.version, self.models[action.version])
        return before, self.evaluate(action.site, action.round, update)


def admissible(journal: Journal, asked: Sequence[str]) -> list[tuple[str, int]]:
    """Return the updates, as site and round, that a user lets in with ``--admit``.

    Raises:
        UserMistake: there is no such update, or its round has been closed without it.
    """
    aside = [(record["site"], record["round"]) for record in journal.events("update_put_aside")]
    made = max((record["round"] for record in journal.events("aggregated")), default=0)
    waiting = [pair for pair in dict.fromkeys(aside) if pair[1] > made]
    found = []
    for text in asked:
        named = SITE_AND_ROUND.fullmatch(text)
        if named is None:
            raise UserMistake(f"--admit {text}: write SITE:ROUND, for example polaris:3")
        pair = named[1], int(named[2])
        if pair not in waiting:
            closed = ": its round is closed, the model was made without it" if pair in aside else ""
            names = ", ".join(f"{site}:{number}" for site, number in waiting) or "none"
            raise UserMistake(f"--admit {text}: no update that waits to be let in{closed}. There are: {names}")
        found.append(pair)
    return found


def admit(journal: Journal, updates: Sequence[tuple[str, int]]) -> None:
    """Record that updates are let in, and withdraw what the strategy was told of them, so that they arrive again."""
    for site, number in updates:
        journal.write("update_admitted", site=site, round=number, reason="let in by hand (--admit)")
        tasks = {r["task"] for r in journal.events("update_put_aside") if (r["site"], r["round"]) == (site, number)}
        told = [r for r in recorded_events(journal) if r["kind"] == "SiteFailed" and r["fields"]["task"] in tasks]
        if told:
            withdraw_since(journal, told[0]["seq"])
