"""What a strategy cannot compute with is the failure of one site, the same at each replay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from workflows.dataflow.reaction import reaction
from workflows.records.journal import Journal
from workflows.strategies.base import Action, CampaignStarted, SiteFacts, Train, UpdateArrived
from workflows.strategies.fedavg import FedAvg


class Overflowing(FedAvg):
    """Fails over an update after it has changed its state."""

    def react(self, event: object) -> list[Action]:
        actions = super().react(event)
        if isinstance(event, UpdateArrived) and event.train_s > 1e8:
            raise OverflowError("cannot convert float infinity to integer")
        return actions


def test_what_a_strategy_cannot_compute_with_is_that_sites_failure_at_each_replay(tmp_path: Path) -> None:
    journal, answers = Journal(tmp_path / "journal.jsonl"), []
    for _driver in range(2):
        strategy = Overflowing(2, 5, "equal", 1)
        requests = strategy.react(CampaignStarted(0.0, (SiteFacts("a", 1), SiteFacts("b", 1))))
        actions = {request.task: request for request in requests if isinstance(request, Train)}
        engine = SimpleNamespace(run=SimpleNamespace(journal=journal), requests=SimpleNamespace(actions=actions))
        events = [UpdateArrived(9.0, "ab"[k], k, "id", 5, 5, (1e9, 1.0)[k], 0.0) for k in (0, 1)]
        answers.append([reaction(strategy, event, engine) for event in events])
    (nothing, (made, *_)) = answers[0]
    assert nothing == [] and made.parts == ((1, 1.0),) and answers[0] == answers[1]
    (failed,) = journal.events("task_failed")
    assert (failed["site"], failed["round"]) == ("a", 1) and "OverflowError" in failed["reason"]
