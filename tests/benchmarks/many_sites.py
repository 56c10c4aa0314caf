"""Simulate how one driver keeps up with many sites behind Globus Compute: its own code on a simulated clock.

    python tests/benchmarks/many_sites.py [--sites 4 16 64] [--rounds 3] [--train-s 60] [--request-s 0.25]

The service's thread, its rate limit and the looks at sites are the driver's own; the web service is simulated. Every
training takes ``--train-s`` from its submission, a look one second. A round ends when all answers are known. The table
has the seconds of the last round, after how many all calls are submitted, how late answers are known, and requests.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.liveness import LOOK, Liveness
from workflows.globus.compute.rate_limit import RateLimiter
from workflows.globus.compute.service import ComputeService

LOOK_S = 1.0
STATE = {"progress": None, "claims": [], "checkpoint": None, "finished": None}
TRAIN = "apps.train:local_train"


class SimulatedClock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    def wait(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


class MemoryJournal:
    """Records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        self.records.append({"event": event, "time": 0.0, **fields})
        return self.records[-1]

    def events(self, *names: str) -> Iterator[dict[str, Any]]:
        return (record for record in self.records if record["event"] in names)


class WebService:
    """The web service: takes any number of requests, each ``request_s`` long, and counts them."""

    def __init__(self, clock: SimulatedClock, train_s: float, request_s: float) -> None:
        self.clock, self.train_s, self.request_s = clock, train_s, request_s
        self.requests: collections.Counter[str] = collections.Counter()
        self.ends: dict[str, float] = {}  # task id -> when its result is there
        self.trained: list[float] = []

    def _takes(self, what: str) -> None:
        self.requests[what] += 1
        self.clock.wait(self.request_s)

    def create_batch(self, **settings: Any) -> Any:
        from globus_compute_sdk.sdk.batch import Batch
        from globus_compute_sdk.serialize import ComputeSerializer, JSONData

        return Batch(None, serializer=ComputeSerializer(strategy_data=JSONData()), **settings)

    def register_function(self, _: Any) -> dict[str, str]:
        self._takes("register")
        return {"function_uuid": str(uuid.uuid4())}

    def submit(self, _: str, document: dict[str, Any]) -> dict[str, Any]:
        ((function_id, payloads),) = document["tasks"].items()
        looks = [LOOK in payload for payload in payloads]
        self._takes("submit looks" if all(looks) else "submit trainings")
        task_ids = [str(uuid.uuid4()) for _ in payloads]
        for task_id, look in zip(task_ids, looks, strict=True):
            self.ends[task_id] = self.clock.now + (LOOK_S if look else self.train_s)
            self.trained += [] if look else [self.ends[task_id]]
        return {"tasks": {function_id: task_ids}}

    def get_task_batch(self, task_ids: list[str]) -> dict[str, Any]:
        self._takes("poll")
        state = json.dumps({"result": STATE | {"time": self.clock.time()}})
        ended = {"status": "success", "result": "11\n" + json.dumps(state)}
        return {"results": {i: ended if self.ends[i] <= self.clock.now else {"status": "running"} for i in task_ids}}

    def get_endpoint_status(self, _: str) -> dict[str, str]:
        self._takes("endpoint status")
        return {"status": "online"}


class SimulatedApi(ComputeApi):
    """The driver's requests, made to a simulated service."""

    def __init__(self, web: WebService, clock: SimulatedClock) -> None:
        super().__init__(lambda: web, RateLimiter(clock=clock.monotonic, wait=clock.wait))  # type: ignore[arg-type,return-value]
        self._client = self._v2 = self._v3 = web  # type: ignore[assignment]

    def register(self, used_before: str | None = None, chosen: str | None = None) -> str:
        """Return the function's id; that of this machine's user is not touched."""
        return chosen or used_before or self._register()


@dataclass(frozen=True)
class Outcome:
    """Of the last round: its seconds, those until all was submitted, how late answers were known; all requests."""

    round_s: float
    submitted_s: float
    median_late_s: float
    worst_late_s: float
    requests: dict[str, int]
    seconds: float
    most: int  # requests in any period of the limit


def simulate(sites: int, files: bool, rounds: int = 3, train_s: float = 60.0, request_s: float = 0.25) -> Outcome:
    """Run rounds of one training at each site; ``files``: every site has an endpoint for files that is looked at."""
    clock = SimulatedClock()
    web = WebService(clock, train_s, request_s)
    api = SimulatedApi(web, clock)
    moments: list[float] = []
    counted = api.limiter.__call__
    with (
        patch("workflows.globus.compute.liveness.time", clock),
        patch.object(
            RateLimiter,
            "__call__",
            lambda _: counted() and not moments.append(clock.now),  # type: ignore[func-returns-value]
        ),
    ):
        service = ComputeService(lambda: web, MemoryJournal(), api, clock.monotonic)  # type: ignore[arg-type,return-value]
        for k in range(sites):
            target = CallTarget(f"s{k}", f"files{k}") if files else None
            service.periodic.append(Liveness(service, f"s{k}", "/x", target).poll)
        for number in range(rounds):
            began, web.trained = clock.now, []
            late, submitted_s = play_round(service, web, clock, number, sites)
            round_s = clock.now - began
    late.sort()
    most = max(sum(1 for m in moments if at - api.limiter.period_s < m <= at) for at in moments)
    return Outcome(round_s, submitted_s - began, late[len(late) // 2], late[-1], dict(web.requests), clock.now, most)


def play_round(
    service: ComputeService, web: WebService, clock: SimulatedClock, number: int, sites: int
) -> tuple[list[float], float]:
    """Submit one training to each site and step until all have answered; return the delays, and the last submission."""
    calls = [Call(f"{number}-{k}", CallTarget(f"s{k}", f"e{k}"), TRAIN, "r", f"w{k}") for k in range(sites)]
    waiting: dict[str, Future[Any]] = {call.key: service.submit(call) for call in calls}
    known: list[float] = []
    while waiting:
        clock.wait(service.step())
        done = [key for key, future in waiting.items() if future.done()]
        known += [clock.now] * len(done)
        for key in done:
            waiting.pop(key).result()
    ends = sorted(web.trained)
    return [at - end for at, end in zip(known, ends, strict=True)], ends[-1] - web.train_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-s", type=float, default=60.0)
    parser.add_argument("--request-s", type=float, default=0.25)
    options = parser.parse_args()
    for sites in options.sites:
        for files in (False, True):
            found = simulate(sites, files, options.rounds, options.train_s, options.request_s)
            print(
                f"{sites} sites, files endpoints {'yes' if files else 'no'}: a round takes {found.round_s:.0f} s;"
                f" all submitted after {found.submitted_s:.0f} s; answers known after {found.median_late_s:.0f} s"
                f" (worst {found.worst_late_s:.0f} s); requests in {found.seconds:.0f} s: {found.requests}, at most"
                f" {found.most} in 10 s"
            )


if __name__ == "__main__":
    main()
