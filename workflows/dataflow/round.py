"""One federated round as a graph of Parsl apps.

    model ─ stage_out ─> base ─ local_train ─> manifest ─ stage_in ─> update ─┐
      │       server             at the site               server             ├─ aggregate ─> next model ─ evaluate
      └────── the same at every other site ───────────────────────> update ───┘    server                 evaluator

Each method below submits apps and returns their futures at once. A future is an argument of the next app, so Parsl
starts an app as soon as its inputs are there. Nothing here waits, and no tensor passes through the driver: what crosses
an arrow is a small dictionary with the hash, size and store of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from apps.aggregate import aggregate
from apps.artifacts.robust import RobustSpec
from apps.artifacts.server_optimizer import ServerRuleSpec
from apps.base.identity import Place
from apps.evaluate import evaluate
from apps.server import prepare, save_model
from apps.train import enrol, local_train
from apps.training.task import TrainRequest
from workflows.dataflow.staging import Staging, staging_of
from workflows.planning.labels import EVALUATOR, SERVER
from workflows.planning.plan import Plan, evaluation_settings

if TYPE_CHECKING:
    from workflows.globus.transfer.staging import GlobusStaging

Future = Any  # of a task's result: Parsl's AppFuture
App = Callable[..., Future]  # submits one call and returns its future


class Bind(Protocol):
    """Makes a Parsl app of a function, bound to one executor."""

    def __call__(self, function: Callable[..., Any], on: str, *, unnamed: Sequence[str] = ()) -> App:
        """Return what submits a call of ``function`` to the executor with the label ``on``.

        Args:
            function: one of the apps.
            on: label of the executor.
            unnamed: keyword arguments that are no part of a task's identity.
        """


@dataclass(frozen=True)
class LocalRound:
    """Futures of one site's part of a round."""

    model: Future
    base: Future  # the model, staged out
    manifest: Future
    update: Future  # staged in and checked


class RoundGraph:
    """The apps of a campaign, each bound once to its executor.

    Args:
        plan: the checked campaign.
        app: makes a Parsl app of a function, for an executor.
        globus: stages files by Globus Transfer, where a site needs it.
    """

    def __init__(self, plan: Plan, app: Bind, globus: GlobusStaging | None) -> None:
        self.plan = plan
        server, evaluator = plan.server_at.label, plan.evaluation_at.label
        self.prepare, self.aggregate, self.save_model = (app(f, server) for f in (prepare, aggregate, save_model))
        self.evaluate = app(evaluate, evaluator, unnamed=("at",))
        self.evaluation_settings = evaluation_settings(plan)
        self.enrol = {site: app(enrol, site) for site in plan.sites}
        self.local_train = {site: app(local_train, site) for site in plan.sites}
        self.staging: dict[str, Staging] = {site: staging_of(site, plan, app, globus) for site in plan.sites}

    def first_model(self) -> Future:
        """Make the model that round 1 starts from."""
        return self.prepare(Place(site=SERVER, round=0), self.plan.server_work)

    def shard(self, site: str) -> Future:
        """Prepare a site's data; the result says how much there is."""
        return self.enrol[site](Place(site=site, round=0), self.plan.site_work[site])

    def train_at(
        self, site: str, number: int, request: TrainRequest, model: Future, shard: Future, attempt: int = 1
    ) -> LocalRound:
        """Stage the model out to a site, train it there, stage the update in.

        Args:
            site: name of the site.
            number: of the round.
            request: what the strategy asks of the site.
            model: the global model to start from.
            shard: the site's data.
            attempt: number of this request for the same work; from 2 on files are sent again.
        """
        place, work, staging = Place(site=site, round=number), self.plan.site_work[site], self.staging[site]
        base = staging.stage_out(place, model, attempt)
        manifest = self.local_train[site](place, work, request, base, shard)
        update = staging.stage_in(place, manifest, base, attempt)
        return LocalRound(model, base, manifest, update)

    def forget(self, site: str, number: int, base: Future, earlier: LocalRound) -> Future:
        """Delete at a site what the server has of an earlier round, once the next model is there."""
        return self.staging[site].forget(Place(site=site, round=number), base, earlier.base, earlier.manifest)

    def next_model(
        self,
        version: int,
        base: Future,
        weights: Sequence[float],
        rules: tuple[ServerRuleSpec | None, RobustSpec | None],
        terms: Sequence[Future],
        clips: Sequence[float] = (),
    ) -> Future:
        """Aggregate updates, and earlier models where a strategy wants them, into the next model.

        Args:
            version: of the new model.
            base: the model before.
            weights: of ``terms``.
            rules: optimizer at the server and robust rule, or None.
            terms: updates, then models.
            clips: factors on the changes of the updates; none: all count whole.
        """
        place = Place(site=SERVER, round=version)
        optimizer, robust = rules
        more: dict[str, Any] = {"clips": list(clips)} if any(clip < 1 for clip in clips) else {}
        more |= {"robust": robust} if robust else {}
        return self.aggregate(place, self.plan.server_work, base, weights, version, optimizer, *terms, **more)

    def losses(self, who: str, number: int, candidate: Future) -> Future:
        """Evaluate the global model, or the update of a site."""
        place, settings = Place(site=EVALUATOR, round=number), self.evaluation_settings
        return self.evaluate(place, self.plan.evaluation_work, candidate, who, at=settings)

    def final_model(self, last: Future, folder: str) -> Future:
        """Write the last model as users load it."""
        place = Place(site=SERVER, round=self.plan.campaign.rounds)
        return self.save_model(place, self.plan.server_work, last, folder)
