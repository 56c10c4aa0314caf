"""The live display of batch sites: the state of their blocks, and problems with them."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from site_configs.library.schedulers import JobFacts
from workflows.dataflow.activity import SiteActivity
from workflows.records.journal import Journal
from workflows.reporting.display import Display, block_text, phase_text, site_text
from workflows.reporting.problem_lines import problem_text
from workflows.runtime.block_watch import BlockWatch, WatchedJob

NOW = 10_000.0
TRAINING = {"round": 2, "step": 3, "steps": 6, "loss": 1.5, "tokens_per_s": 90.0}


def facts(state: Any, started: float | None, reason: str = "") -> JobFacts:
    return JobFacts("4711", "cf", state, 5000.0, started, None, 1, "debug", None, reason, 3600)


def watch(*jobs: WatchedJob) -> Any:
    """Return a watch with these jobs and the real text about them."""
    found: Any = SimpleNamespace(
        jobs={job.job_id: job for job in jobs},
        block=SimpleNamespace(walltime_s=3600),
        executor=SimpleNamespace(provider=None),
    )
    found.state = lambda: BlockWatch.state(found)
    found.running = lambda: BlockWatch.running(found)
    return found


def activity(watch: Any = None, phase: str = "training", progress: Any = None) -> SiteActivity:
    at_work = watch is None or watch.running()
    return SiteActivity(phase, progress, None, watch) if at_work else SiteActivity(watch.state(), None, None, watch)


def engine(journal: Journal, now: SiteActivity) -> Any:
    return SimpleNamespace(
        activity=lambda site: now,
        server_activity=lambda: "",
        run=SimpleNamespace(journal=journal),
        plan=SimpleNamespace(
            campaign=SimpleNamespace(evaluation=SimpleNamespace(sites=True, every=1)), server_blocks=[]
        ),
    )


def test_a_job_that_waits_is_named_with_its_reason() -> None:
    waiting = watch(WatchedJob("4711", time.time() - 720, facts("pending", None, "Priority")))
    waiting.jobs["4711"].facts = JobFacts(
        "4711", "cf", "pending", time.time() - 720, None, None, 1, "debug", None, "Priority", 3600
    )
    assert site_text(activity(waiting)) == "queued for 12 min (job 4711, Priority)"


def test_a_site_without_a_job_asks_for_one() -> None:
    assert site_text(activity(watch())) == "requesting a block"
    assert (
        site_text(activity(watch(WatchedJob("4711", 5.0, facts("running", 6.0), ended=True)))) == "requesting a block"
    )


def test_a_running_block_precedes_what_the_site_does_in_it() -> None:
    begun = watch(WatchedJob("4711", NOW, facts("running", time.time() - 600.0)))
    words = site_text(activity(begun, "training", TRAINING))
    assert words == "block 4711 runs, 50 min left: round 2: step 3 of 6, loss 1.500, 90 tokens/s"
    assert site_text(activity(begun, "idle")) == "block 4711 runs, 50 min left: idle, waiting for the others"


def test_a_site_that_is_ready_before_the_campaign_begins_waits_for_the_others() -> None:
    assert site_text(activity(phase="gathering")) == "ready, waiting at most two minutes for the others"
    assert site_text(activity(phase="ready")) == "ready"


def test_a_site_without_a_batch_system_has_no_block() -> None:
    assert site_text(activity(None, "training", TRAINING)) == "round 2: step 3 of 6, loss 1.500, 90 tokens/s"


@pytest.mark.parametrize(
    ("started", "words"),
    [
        (NOW - 600, "block 4711 runs, 50 min left"),
        (NOW - 3590, "block 4711 runs, 10 s left"),
        (NOW - 3700, "block 4711 runs"),  # the scheduler gives some grace
        (None, "block 4711 runs"),
    ],
)
def test_the_time_that_a_block_has_left(started: float | None, words: str) -> None:
    assert block_text(watch(WatchedJob("4711", 5000.0, facts("running", started))), NOW) == words


def test_only_the_newest_block_that_is_not_over_counts() -> None:
    over = WatchedJob("4710", 1.0, facts("running", 2.0), ended=True)
    assert block_text(watch(over), NOW) is None
    assert block_text(watch(over, WatchedJob("4711", 5.0)), NOW) is None
    assert block_text(watch(over, WatchedJob("4711", 5.0, facts("pending", None))), NOW) is None


def test_phases_as_text() -> None:
    assert phase_text("staging", None) == "receiving the model"
    assert phase_text("queued for 3 min (job 7)", None) == "queued for 3 min (job 7)"
    quiet: Any = TRAINING | {"loss": None}
    assert phase_text("training", quiet) == "round 2: step 3 of 6"
    assert phase_text("training", None) == "training"


def ended(state: str, reason: str = "", **more: Any) -> dict[str, Any]:
    record = {"event": "block_ended", "site": "north", "job_id": "4711", "state": state, "reason": reason}
    return record | {"started": 5.0, "asked": None} | more


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (ended("timeout", "TimeLimit"), "north: block 4711 has ended: timeout (TimeLimit)"),
        (ended("node_fail"), "north: block 4711 has ended: node fail"),
        (ended("requeued"), "north: block 4711 has ended: requeued"),
        (ended("cancelled"), None),
        (ended("cancelled", asked=True), None),
        (
            ended("cancelled", asked=False),
            "north: block 4711 was cancelled, not by this campaign; its work continues in the next block",
        ),
        (
            ended("cancelled", "by root", asked=False, started=None),
            "north: block 4711 was cancelled, not by this campaign (by root); it was still queued; a new one follows",
        ),
        (
            ended("unknown", "the scheduler no longer knows the job", asked=False),
            "north: block 4711 has ended (the scheduler no longer knows the job); its work continues in the next block",
        ),
        (ended("unknown", "the scheduler no longer knows the job", asked=True), None),
        (ended("completed", asked=False), None),
        (ended("completed"), None),
        (
            {"event": "block_failed", "site": "north", "kind": "refused", "reason": "no such queue", "retry_s": 10.0},
            "north: a block could not be submitted: no such queue; next submission in 10 s",
        ),
        (
            {"event": "block_failed", "site": "north", "reason": "a sentence of older code"},
            "north: a sentence of older code",
        ),
        (
            {"event": "blocks_left", "site": "north", "reason": "north: job 7 of its earlier configuration ..."},
            "north: job 7 of its earlier configuration ...",
        ),
        (
            {"event": "blocks_cancelled", "site": "north", "job_ids": ["14", "15"], "reason": "left"},
            "north: 2 jobs of an earlier driver cancelled: 14, 15",
        ),
        ({"event": "block_replaced", "site": "north", "reason": "it was broken"}, "north: it was broken"),
        (
            {"event": "block_failed", "site": "north", "kind": "failed", "reason": "/store/north/certificates: gone"},
            "north: a block has failed: /store/north/certificates: gone",
        ),
        (
            {"event": "site_waits", "site": "north", "round": 3, "reason": "No space left at /x; free space"},
            "round 3 waits for north: No space left at /x; free space",
        ),
        (
            {"event": "site_waits", "site": "north", "round": 0, "reason": "No space left at /x"},
            "the start waits for north: No space left at /x",
        ),
        ({"event": "site_back", "site": "north"}, "north: works again"),
        (
            ended("completed") | {"asked": False, "busy": True},
            "north: block 4711 has ended, completed, with work on it; its work continues in the next block",
        ),
        (ended("completed") | {"asked": False, "busy": False}, None),
        (ended("completed") | {"asked": True, "busy": True}, None),
        ({"event": "update_refused", "site": "north", "reason": "site north: not finite"}, "site north: not finite"),
        (
            {"event": "compute_unreachable", "reason": "503 Service Unavailable"},
            "Globus Compute does not answer: 503 Service Unavailable; work at the sites continues",
        ),
        ({"event": "transfer_back"}, "Globus Transfer answers again"),
        ({"event": "endpoint_status", "site": "north", "status": "offline"}, "north: its endpoint is offline"),
        (
            {"event": "transfer_trouble", "site": "north", "direction": "fetch", "reason": "permission denied"},
            "north: fetching the update: permission denied",
        ),
        (
            {"event": "compute_asked_again", "site": "north", "reason": "nothing is heard of it"},
            "north: call repeated, nothing is heard of it",
        ),
        ({"event": "transfer_ended", "site": "north", "state": "SUCCEEDED"}, None),
        ({"event": "block_submitted", "site": "north"}, None),
    ],
)
def test_which_records_are_problems(record: dict[str, Any], text: str | None) -> None:
    assert problem_text(record) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_of_a_batch_site(tmp_path: Path, terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=140, highlight=False)
    journal = Journal(tmp_path / "journal.jsonl")
    begun = watch(WatchedJob("4711[3].pbs", NOW, facts("running", time.time() - 600.0)))
    with Display(console, ["north"], 8) as display:
        journal.write(**ended("preempted", "by [root]"))
        display.tick(engine(journal, activity(begun, "training", TRAINING)))
    assert "block 4711 runs, 50 min left: round 2: step 3 of 6" in text.getvalue()
    assert "north: block 4711 has ended: preempted (by [root])" in text.getvalue()
    journal.close()
