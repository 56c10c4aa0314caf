"""What the watcher of a site's blocks records and tells, with a scheduler that answers by a script."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaigns import journal as records
from patience import patience, wait_until

from apps.base.errors import CrossfedError, StorageError
from site_configs.library.providers import SlurmBlocks
from site_configs.library.schedulers import GONE, UNKNOWN, Answer, JobFacts
from site_configs.library.site import Block, Queue, Site
from site_configs.local import site as local_site
from workflows.records.journal import Journal
from workflows.records.queue_history import read_history
from workflows.reporting.problem_lines import problem_text
from workflows.runtime import block_watch as blocks
from workflows.runtime import leftovers
from workflows.runtime.block_watch import SETTLE_S, BlockWatch, watch_blocks
from workflows.runtime.leftovers import cancel_leftovers, leftover_problems
from workflows.runtime.site_executor import SiteExecutor

QUEUE = Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide")
BLOCK = Block("slurm", QUEUE, 2, 5400, "ABC")
NOW = 1_790_000_000.0


@dataclass
class Script:
    """A scheduler that answers as it is told and notes what it is asked to end."""

    answers: dict[str, Answer] = field(default_factory=dict)
    found: list[list[JobFacts] | None] = field(default_factory=list)  # one after the other, then nothing
    stubborn: tuple[str, ...] = ()
    cancelled: list[str] = field(default_factory=list)
    sought: list[str] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        self.asked.append(list(ids))
        return {job_id: self.answers.get(job_id, UNKNOWN) for job_id in ids}

    def find(self, token: str) -> list[JobFacts] | None:
        self.sought.append(token)
        return self.found.pop(0) if self.found else []

    def cancel(self, ids: Sequence[str]) -> list[str]:
        self.cancelled += ids
        return [job_id for job_id in ids if job_id in self.stubborn]


def facts(state: Any, job_id: str = "7", **changes: Any) -> JobFacts:
    made = JobFacts(job_id, "cf-12", state, NOW - 60, None, None, 2, "small", None, "", 5400)
    return dataclasses.replace(made, **changes)


RUNNING = facts("running", started=NOW - 20)


@dataclass
class World:
    """A watcher with all that it looks at."""

    folder: Path
    script: Script
    watch: BlockWatch
    submitted: dict[str, str]

    def tell(self, answer: Answer, job_id: str = "7") -> None:
        self.script.answers[job_id] = answer
        self.watch.look()

    def told(self, *events: str) -> list[dict[str, Any]]:
        return records(self.folder, *events)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock of the watcher; it stands at NOW."""

    def at(moment: float) -> None:
        monkeypatch.setattr(blocks.time, "time", lambda: moment)

    at(NOW)
    return at


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Any) -> Script:
    script = Script()
    for module in (blocks, leftovers):
        monkeypatch.setattr(module, "scheduler_for", lambda kind, environment: script)
    monkeypatch.setattr(blocks, "END_STATES_S", 0.3)
    monkeypatch.setattr(blocks, "CLOSING_PERIOD_S", 0.01)
    monkeypatch.setenv("CROSSFED_HISTORY", str(tmp_path / "history.csv"))
    return script


def batch_site(name: str = "alpha", **changes: Any) -> Site:
    block = dataclasses.replace(BLOCK, **changes)
    return dataclasses.replace(local_site(name, Path("runs/x")), route="batch", block=block)


@pytest.fixture
def world(script: Script, tmp_path: Path) -> World:
    submitted = {"0": "7"}
    provider: Any = SlurmBlocks(BLOCK)
    provider.scheduler = script
    executor = SimpleNamespace(blocks_to_job_id=submitted, provider=provider)
    diary = Journal(tmp_path / "journal.jsonl")
    watch = BlockWatch(batch_site(), "frontier", executor, diary, "demo", "cf-12", 0.01)
    return World(tmp_path, script, watch, submitted)


# -- what is recorded -------------------------------------------------------------------------------------------


def test_a_submission_is_noted_once(world: World) -> None:
    world.watch.look()
    world.watch.look()
    (noted,) = world.told()
    expected = {"site": "alpha", "block": "0", "job_id": "7", "queue": "small", "nodes": 2, "walltime_s": 5400}
    assert {key: noted[key] for key in expected} == expected and noted["event"] == "block_submitted"
    world.submitted["1"] = "8"
    world.watch.look()
    assert [r["job_id"] for r in world.told("block_submitted")] == ["7", "8"]
    assert world.script.asked == [["7"], ["7"], ["7", "8"]]


def test_nothing_is_asked_before_there_is_a_block(world: World) -> None:
    world.submitted.clear()
    world.watch.look()
    assert world.script.asked == [] and world.told() == []


def test_a_start_is_told_once_with_the_schedulers_own_wait(world: World) -> None:
    world.tell(facts("pending", reason="Priority"))
    assert world.told("block_started") == []
    world.tell(RUNNING)
    world.tell(RUNNING)
    (begun,) = world.told("block_started")
    assert (begun["started"], begun["wait_s"]) == (NOW - 20, 40.0)


def test_a_wait_without_the_schedulers_time_of_submission_counts_from_our_own(world: World, clock: Any) -> None:
    world.tell(facts("pending", submitted=None))
    clock(NOW + 90)
    world.tell(facts("running", submitted=None, started=NOW + 30))
    assert world.told("block_started")[0]["wait_s"] == 30.0


def test_no_wait_is_negative_where_the_job_began_before_it_was_noticed(world: World) -> None:
    world.tell(facts("running", submitted=None, started=NOW - 5))
    assert world.told("block_started")[0]["wait_s"] == 0.0


@pytest.mark.parametrize(
    "state", ["completed", "failed", "timeout", "cancelled", "preempted", "node_fail", "out_of_memory"]
)
def test_each_end_is_told_once_and_goes_to_the_history(world: World, state: Any) -> None:
    end = facts(state, started=NOW - 20, ended=NOW - 1, reason="NonZeroExitCode")
    world.tell(end)
    world.tell(end)
    (ended,) = world.told("block_ended")
    assert (ended["state"], ended["reason"]) == (state, "NonZeroExitCode")
    assert (ended["started"], ended["ended"]) == (NOW - 20, NOW - 1)
    assert len(world.told("block_started")) == 1  # it ran and ended between two questions
    (row,) = read_history()
    assert (row.machine, row.site, row.campaign, row.scheduler) == ("frontier", "alpha", "demo", "slurm")
    assert (row.queue, row.job_id, row.nodes, row.walltime_s, row.state) == ("small", "7", 2, 5400, state)
    assert (row.submitted, row.started, row.ended) == (NOW - 60, NOW - 20, NOW - 1)
    assert world.script.asked == [["7"]]  # what has ended is not asked for again


def test_a_job_that_is_cancelled_while_it_waits_has_never_begun(world: World) -> None:
    world.tell(facts("pending"))
    world.tell(facts("cancelled", ended=NOW))
    assert world.told("block_started") == [] and world.told("block_ended")[0]["started"] is None
    assert read_history()[0].started is None


@pytest.mark.parametrize(("ours", "asked"), [(True, True), (False, False)])
def test_whose_wish_an_end_was_is_noted(world: World, monkeypatch: pytest.MonkeyPatch, ours: bool, asked: bool) -> None:
    provider: Any = world.watch.executor.provider
    monkeypatch.setattr(provider, "scheduler", world.script)
    world.tell(RUNNING)
    if ours:
        provider.cancel(["7"])
    world.tell(facts("cancelled", started=NOW - 20, ended=NOW))
    assert [r["asked"] for r in world.told("block_ended")] == [asked]


def test_a_provider_that_is_not_ours_does_not_tell_whose_wish_it_was(world: World) -> None:
    world.watch.executor.provider = object()
    world.tell(facts("cancelled", ended=NOW))
    assert [r["asked"] for r in world.told("block_ended")] == [None]


def test_unknown_is_never_an_end(world: World, clock: Any) -> None:
    for moment, answer in ((NOW, UNKNOWN), (NOW + 1, RUNNING), (NOW + 10 * SETTLE_S, UNKNOWN), (NOW + 1e6, UNKNOWN)):
        clock(moment)
        world.tell(answer)
    assert world.told("block_ended") == [] and world.watch.running()


def test_gone_soon_after_submission_is_no_end(world: World, clock: Any) -> None:
    world.tell(GONE)
    clock(NOW + SETTLE_S - 1)
    world.tell(GONE)
    assert world.told("block_ended") == []
    world.tell(RUNNING)
    assert len(world.told("block_started")) == 1


def test_gone_later_is_an_end(world: World, clock: Any) -> None:
    world.tell(UNKNOWN)
    clock(NOW + SETTLE_S + 1)
    world.tell(GONE)
    (ended,) = world.told("block_ended")
    assert (ended["state"], ended["started"]) == ("unknown", None)
    assert read_history()[0].state == "unknown" and read_history()[0].submitted == NOW


def test_gone_is_an_end_at_once_for_a_job_that_was_seen(world: World) -> None:
    world.tell(RUNNING)
    world.tell(GONE)
    (ended,) = world.told("block_ended")
    assert (ended["state"], ended["started"]) == ("unknown", NOW - 20)
    assert "no longer knows" in ended["reason"]


# -- what the user is told --------------------------------------------------------------------------------------


def test_the_words_for_the_user(world: World, clock: Any) -> None:
    world.submitted.clear()
    world.watch.look()
    assert world.watch.state() == "requesting a block" and not world.watch.running()
    world.submitted["0"] = "7"
    world.tell(UNKNOWN)
    clock(NOW + 240)
    assert world.watch.state() == "queued for 4 min (job 7)"  # by our own clock
    world.tell(facts("pending", reason="Priority"))
    assert world.watch.state() == "queued for 5 min (job 7, Priority)" and not world.watch.running()
    world.tell(RUNNING)
    assert world.watch.state() == "block 7 runs" and world.watch.running()
    world.tell(facts("timeout", started=NOW, ended=NOW))
    assert world.watch.state() == "requesting a block" and not world.watch.running()
    world.submitted["1"] = "8"
    world.tell(facts("pending", "8", submitted=NOW + 240), "8")
    assert world.watch.state() == "queued for 0 min (job 8)"


def test_a_wait_that_is_no_ordinary_one_is_told_once_for_each_reason(world: World) -> None:
    for reason in (
        "Priority",
        "QOSMaxJobsPerUserLimit",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpBillingMinutes",
        "Resources",
    ):
        world.tell(facts("pending", reason=reason))
    limit, hours = world.told("block_waits")
    assert limit["reason"].startswith("job 7 waits (QOSMaxJobsPerUserLimit): a limit on running jobs of one user")
    assert hours["reason"].startswith("job 7 does not start by itself (AssocGrpBillingMinutes): the allocation has too")
    assert problem_text(hours) == f"alpha: {hours['reason']}"
    assert "AssocGrp" not in world.watch.state()


def test_a_requeued_job_waits_again_and_has_begun_once(world: World) -> None:
    for answer in (RUNNING, facts("pending"), RUNNING):
        world.tell(answer)
    assert len(world.told("block_started")) == 1 and world.watch.running()


# -- the thread -------------------------------------------------------------------------------------------------


def test_it_looks_by_itself_and_survives_an_answer_that_nobody_foresaw(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("invalid literal for int(): 4-4"), {"7": RUNNING}])

    def odd(ids: Sequence[str]) -> dict[str, Answer]:
        answer = next(answers, {"7": facts("completed", started=NOW, ended=NOW)})
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    world.script.jobs = odd  # type: ignore[method-assign]
    world.watch.start()
    wait_until(lambda: world.told("block_ended"))
    world.watch.close()
    assert not world.watch.thread.is_alive()
    assert "could not be read" in caplog.text and len(world.told("block_started")) == 1


def test_it_ends_with_a_journal_that_cannot_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.watch.journal, "write", full_disk)
    world.watch.start()
    world.watch.thread.join(patience(20))
    assert not world.watch.thread.is_alive()


def full_disk(event: str, **fields: Any) -> Any:
    raise StorageError("No space left on device", file="journal.jsonl")


# -- the end ----------------------------------------------------------------------------------------------------


def test_close_cancels_what_is_left_and_waits_for_its_end(world: World) -> None:
    world.watch.start()
    world.tell(RUNNING)
    world.script.found = [[RUNNING], [RUNNING]]

    def cancel(ids: Sequence[str]) -> list[str]:
        world.script.cancelled += ids
        world.script.answers["7"] = facts("cancelled", started=NOW - 20, ended=NOW)
        return []

    world.script.cancel = cancel  # type: ignore[method-assign]
    world.watch.close()
    assert set(world.script.sought) == {"cf-12"} and world.script.cancelled == ["7", "7"]
    assert [(r["state"], r["asked"]) for r in world.told("block_ended")] == [("cancelled", True)]


def test_close_goes_on_asking_while_the_scheduler_is_silent(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.watch.start()
    world.script.answers["7"] = facts("cancelled", ended=NOW)
    world.script.found = [None, None, None]
    world.watch.close()
    assert len(world.script.sought) == 4 and world.script.cancelled == []
    assert "may still be there" not in caplog.text


def test_close_warns_of_a_scheduler_that_stays_silent(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.watch.start()
    world.script.found = [None] * 1000
    world.watch.close()
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.getMessage() == "site alpha: jobs may still be there: the scheduler does not answer"
    assert world.told("block_ended") == []


def test_close_warns_of_jobs_that_stay(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.watch.start()
    world.tell(RUNNING)
    world.script.found = [[RUNNING, facts("running", "9")]] * 1000
    world.watch.close()
    assert "site alpha: jobs may still be there: 7, 9" in caplog.text and "9" in world.script.cancelled


def test_close_cancels_though_the_journal_cannot_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.watch.start()
    monkeypatch.setattr(world.watch.journal, "write", full_disk)
    world.script.found = [[RUNNING]]
    world.watch.close()
    assert world.script.cancelled == ["7"]


# -- what an earlier driver has left ----------------------------------------------------------------------------


@pytest.fixture
def diary(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_leftovers_are_cancelled_and_noted(script: Script, diary: Journal, tmp_path: Path) -> None:
    script.found = [[RUNNING, facts("pending", "8")]]
    cancel_leftovers(batch_site(), "cf-12", diary)
    assert script.cancelled == ["7", "8"] and script.sought == ["cf-12"]
    (noted,) = records(tmp_path, "blocks_cancelled")
    assert (noted["site"], noted["job_ids"]) == ("alpha", ["7", "8"])


def test_without_leftovers_nothing_is_noted(script: Script, diary: Journal, tmp_path: Path) -> None:
    cancel_leftovers(batch_site(), "cf-12", diary)
    assert script.cancelled == [] and records(tmp_path) == []


def test_nothing_begins_while_nobody_knows_what_was_left(script: Script, diary: Journal, tmp_path: Path) -> None:
    script.found = [None]
    with pytest.raises(CrossfedError) as raised:
        cancel_leftovers(batch_site(), "cf-12", diary)
    assert str(raised.value) == "site alpha: the scheduler does not answer. Try again when it does"
    assert records(tmp_path) == []


def test_nothing_begins_beside_a_job_that_cannot_be_cancelled(script: Script, diary: Journal, tmp_path: Path) -> None:
    script.found, script.stubborn = [[RUNNING, facts("pending", "8")]], ("8",)
    with pytest.raises(CrossfedError, match="site alpha: jobs of an earlier driver could not be cancelled: 8. Cancel"):
        cancel_leftovers(batch_site(), "cf-12", diary)
    assert records(tmp_path, "blocks_cancelled")[0]["job_ids"] == ["7"]


# -- all sites of a run -----------------------------------------------------------------------------------------


def test_each_batch_site_has_its_watcher(script: Script, diary: Journal, tmp_path: Path) -> None:
    sites = {"alpha": batch_site(), "local": local_site("local", tmp_path), "beta": batch_site("beta")}
    configs = {"alpha": "polaris", "local": "local", "beta": "slurm"}
    plan: Any = SimpleNamespace(
        machines=sites,
        campaign=SimpleNamespace(name="demo", config_of=lambda label: configs[label] or label),
    )
    executor = SimpleNamespace(blocks_to_job_id={}, status_polling_interval=0.01)
    run: Any = SimpleNamespace(journal=diary, opened={"token": "0123456789abcdef"})
    watches = watch_blocks(plan, dict.fromkeys(sites, executor), run)
    try:
        assert {name: watch.machine for name, watch in watches.items()} == {"alpha": "polaris", "beta": "beta"}
        assert all(w.thread.is_alive() and w.prefix == "cf-0123456789" for w in watches.values())
    finally:
        for watch in watches.values():
            watch.close()
    assert not any(watch.thread.is_alive() for watch in watches.values())


# -- what the scheduler says and what the workers say ------------------------------------------------------------


@pytest.fixture
def manned(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The watcher with the executor of a batch site; its block runs and its worker pool is connected."""
    executor = object.__new__(SiteExecutor)
    executor.blocks_to_job_id, executor.job_ids_to_block = world.submitted, {"7": "0"}
    executor._provider, executor._tasks = provider, _ = SlurmBlocks(BLOCK), dict[Any, Any]()
    monkeypatch.setattr(provider, "scheduler", world.script)
    provider.resources["7"] = {"job_stderr_path": str(world.folder / "err"), "job_stdout_path": "nowhere", "status": 0}
    monkeypatch.setattr(provider, "_set", lambda job_id, state, message=None: None)
    now = [0.0]
    world.watch.executor, world.watch.workers.clock = executor, lambda: now[0]
    world.watch.workers.unmanaged_s = 180.0
    executor.registered, executor.managers = ("0",), ({"block_id": "0"},)
    world.script.found, world.pass_s = [], lambda seconds: now.__setitem__(0, now[0] + seconds)  # type: ignore[attr-defined]
    world.tell(RUNNING)
    return world


def after(world: World, seconds: float) -> None:
    """Let time pass for the watcher, with a look every minute."""
    for _ in range(int(seconds // 60)):
        world.pass_s(60)  # type: ignore[attr-defined]
        world.watch.look()


def test_a_block_whose_node_hangs_is_cancelled_and_told(manned: World) -> None:
    manned.watch.executor.managers = ()  # dropped by the interchange; the scheduler says that it runs
    after(manned, 180)
    assert manned.script.cancelled == []
    after(manned, 60)
    assert manned.script.cancelled == ["7"]
    (told,) = manned.told("block_replaced")
    assert told["site"] == "alpha" and told["reason"].startswith("block 7 runs, but its workers have not answered for ")
    manned.tell(facts("cancelled", started=NOW - 20, ended=NOW))
    (ended,) = manned.told("block_ended")
    assert ended["state"] == "node_fail" and ended["reason"].startswith("its workers have not answered for ")


def test_a_block_whose_workers_are_connected_is_kept_however_long(manned: World) -> None:
    after(manned, 3600)
    assert manned.script.cancelled == [] and not manned.told("block_replaced", "start_slow")


def test_nothing_is_taken_from_an_interchange_that_does_not_answer(manned: World) -> None:
    manned.watch.executor.managers, manned.watch.executor.silent_since = (), 1.0
    after(manned, 3600)
    assert manned.script.cancelled == []


def test_a_block_whose_workers_do_not_come_is_told_once_with_its_last_output(manned: World) -> None:
    manned.watch.executor.registered, manned.watch.executor.managers = (), ()
    manned.watch.workers.sights.clear()
    (manned.folder / "err").write_text("Loading modules\n\nwaiting for the container registry\n\n")
    after(manned, 540)
    assert not manned.told("start_slow")
    after(manned, 3600)
    (told,) = manned.told("start_slow")
    assert told["reason"] == (
        "block 7 has run for 11 min and its worker has not connected; last output: waiting for the container registry"
    )
    assert manned.script.cancelled == []


def test_the_drop_and_the_wait_follow_the_sites_heartbeats(script: Script, tmp_path: Path) -> None:
    def wait_of(heartbeat_s: int, period_s: float) -> float:
        site = dataclasses.replace(batch_site(), heartbeat_s=heartbeat_s)
        return BlockWatch(site, "m", object(), Journal(tmp_path / "j"), "c", "cf", period_s).workers.unmanaged_s

    assert wait_of(600, 60) == 180 and wait_of(3, 1) == 6 and wait_of(1, 10) == 30


# -- a scheduler that is silent at a resume ----------------------------------------------------------------------


def test_a_silent_scheduler_holds_its_site_alone(script: Script, tmp_path: Path) -> None:
    script.found = [None]
    found = leftover_problems([batch_site("alpha")], "cf-12", Journal(tmp_path / "journal.jsonl"))
    assert found == {"alpha": "the scheduler does not answer"}
    assert leftover_problems([batch_site("alpha"), batch_site("beta")], "cf", Journal(tmp_path / "journal.jsonl")) == {}


def test_a_held_site_is_let_go_once_its_leftovers_are_cancelled(manned: World) -> None:
    executor = manned.watch.executor
    executor.held, manned.script.found = "waits: the scheduler does not answer", [None, [facts("pending", "5")]]
    manned.watch.look()
    assert executor.held and executor.scale_out_facade(1) == []
    manned.watch.look()
    assert executor.held == "" and manned.script.cancelled == ["5"]
    assert [r["job_ids"] for r in manned.told("blocks_cancelled")] == [["5"]] and manned.told("site_back")
