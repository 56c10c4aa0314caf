"""A site whose trouble may pass waits and comes back by itself, with the real engine and files, tasks in threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from benchmarks import orchestration as trainer

from apps.base.errors import CrossfedError, StorageUnavailable, storage_error
from workflows.dataflow import round as round_module
from workflows.dataflow import waiting as waiting_module
from workflows.dataflow.engine import Engine
from workflows.dataflow.waiting import WaitingSites
from workflows.fl_round import federate
from workflows.planning.plan import make_plan
from workflows.records.run_directory import RunDirectory, open_new
from workflows.reporting.display import site_text
from workflows.reporting.problem_lines import problem_text
from workflows.runtime import kernel as kernel_module
from workflows.runtime.site_executor import OtherVersions
from workflows.strategies import SECTIONS, make_strategy
from workflows.trust.answers import site_error

NAMES = ("prepare", "enrol", "local_train", "evaluate", "save_model")
ROUNDS = 3
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TROUBLES = {
    "full": storage_error(FULL, "/far/away/update", "cannot write"),
    "read-only": storage_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), "/far/away/update", "cannot write"),
    "versions": OtherVersions("it runs Parsl 2025.01.01 on Python 3.11, the driver runs Parsl 2026 on Python 3.11"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    source = tmp_path / "campaign.yaml"
    source.write_text("")
    monkeypatch.setattr(waiting_module, "FIRST_RETRY_S", 0.2)
    monkeypatch.setattr(waiting_module, "BLOCK_RETRY_S", 0.2)
    monkeypatch.setattr(waiting_module, "shares_disk", lambda root, other: False)  # the site has a disk of its own
    with (
        mock.patch.multiple(round_module, **{name: getattr(trainer, name) for name in NAMES}),
        mock.patch.object(kernel_module, "make_config", trainer.in_threads),
    ):
        yield open_new(tmp_path / "run", trainer.campaign_of(3, ROUNDS), source, [], None)


def drive(
    run: RunDirectory, trouble: Callable[[str, int], Exception | None], app: str = "local_train", **section: Any
) -> str | None:
    """Run one driver to its end; ``trouble`` returns what an app raises at a site in a round, or None."""
    honest = getattr(trainer, app)

    def troubled(place: Any, *arguments: Any) -> Any:
        error = trouble(place["site"], place["round"])
        if error is not None:
            raise type(error)(*error.args, file=error.file, remedy=error.remedy).at(**place)  # type: ignore[attr-defined]
        return honest(place, *arguments)

    named = SECTIONS[section.get("name", "fedavg")].model_validate({"name": "fedavg", **section})
    campaign = trainer.campaign_of(3, ROUNDS).model_copy(update={"strategy": named})
    plan = make_plan(campaign, run.path, run.path / "campaign.yaml")
    with mock.patch.object(round_module, app, troubled), kernel_module.parsl_for(plan, run) as kernel:
        return federate(make_strategy(named, ROUNDS, 1), Engine(plan, run, kernel, lambda engine: None))


def for_tries(error: Exception, count: int, number: int = 2) -> Callable[[str, int], Exception | None]:
    """The last site fails so many times in a round."""
    left = [error] * count
    return lambda site, round: left.pop() if (site, round) == ("site02", number) and left else None


def shares(run: RunDirectory) -> list[set[str]]:
    return [set(record["weights"]) for record in run.journal.events("aggregated")]


ALL = {"site00", "site01", "site02"}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(("app", "number"), [("local_train", 2), ("enrol", 0)])
def test_a_round_without_a_quorum_waits_and_the_site_comes_back(
    run: RunDirectory, trouble: str, app: str, number: int
) -> None:
    assert drive(run, for_tries(TROUBLES[trouble], 2, number), app) is None  # type: ignore[arg-type]
    assert shares(run) == [ALL] * ROUNDS
    (waits,), (back,) = run.journal.events("site_waits"), run.journal.events("site_back")
    assert (waits["site"], waits["round"], back["site"]) == ("site02", number, "site02")
    assert not list(run.journal.events("task_failed"))
    assert all(r["kind"] != "SiteFailed" for r in run.journal.events("strategy_event"))


def test_the_user_reads_what_to_do_and_where(run: RunDirectory) -> None:
    drive(run, for_tries(TROUBLES["full"], 2))
    (waits,) = run.journal.events("site_waits")
    assert problem_text(waits) == (
        "round 2 waits for site02: cannot write: No space left on device at /far/away/update; "
        "free space or repair the folder; it is tried again at least every 300 s"
    )


def test_a_round_with_its_quorum_closes_without_the_site_which_is_asked_again(run: RunDirectory) -> None:
    assert drive(run, lambda s, n: TROUBLES["full"] if (s, n) == ("site02", 2) else None, quorum=2) is None
    assert shares(run) == [ALL, {"site00", "site01"}, ALL]
    assert len(list(run.journal.events("site_back"))) == 1


def test_a_site_that_is_needed_for_the_quorum_is_waited_for_whichever_it_is(run: RunDirectory) -> None:
    left = [TROUBLES["full"]] * 2

    def trouble(site: str, number: int) -> Exception | None:
        if (site, number) == ("site01", 2):
            return TROUBLES["full"]
        return left.pop() if (site, number) == ("site02", 2) and left else None

    assert drive(run, trouble, quorum=2) is None
    assert shares(run) == [ALL, {"site00", "site02"}, ALL]


def test_a_strategy_without_rounds_goes_on_with_the_others(run: RunDirectory) -> None:
    assert drive(run, lambda s, n: TROUBLES["full"] if s == "site02" else None, name="fedasync") is None
    assert len(shares(run)) == ROUNDS


def test_the_drivers_own_full_disk_ends_it_in_order(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "shares_disk", lambda root, other: True)
    with pytest.raises(StorageUnavailable, match="No space left on device"):
        drive(run, for_tries(TROUBLES["full"], 1))
    assert drive(run, lambda s, n: None) is None  # and a resume does not take its word for the present state
    assert shares(run) == [ALL] * ROUNDS


def test_a_full_disk_at_the_server_is_no_sites_fault(run: RunDirectory) -> None:
    with mock.patch.object(round_module, "aggregate", side_effect=None) as broken:
        broken.__name__ = "aggregate"
        broken.side_effect = storage_error(FULL, run.artifacts / "x", "cannot write").at(site="server", round=1)
        with pytest.raises(CrossfedError, match="^server, round 1: cannot write: No space left"):
            drive(run, lambda s, n: None)
    assert not list(run.journal.events("site_waits"))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), False),
    ],
    ids=str,
)
def test_which_errors_may_pass(error: Exception, passes: bool) -> None:
    made = storage_error(error, "/far/x", "cannot write")
    assert waiting_module.may_pass(made) == passes
    assert "/far/x" in str(made)


def test_the_display_says_when_it_is_tried_again(run: RunDirectory) -> None:
    plan: Any = make_plan(trainer.campaign_of(3, ROUNDS), run.path, run.path / "campaign.yaml")
    now = [100.0]
    waiting = waiting_module.WaitingSites(plan, run, lambda: now[0])
    again: list[str] = []
    error = TROUBLES["full"].at(site="site00")  # type: ignore[attr-defined]
    with mock.patch.multiple(waiting_module, FIRST_RETRY_S=10.0):
        assert waiting.hold("site00", 3, error, lambda: again.append("site00"))
        text = waiting.text("site00")
        assert text == "waits: cannot write: No space left on device; tried again in 10 s"
        assert site_text(mock.Mock(phase=text, progress=None, seen_at=None, watch=None)) == text
        now[0] += 11
        assert waiting.ask_again() and again == ["site00"] and waiting.text("site00") is None
        for tries in range(2, 9):
            assert waiting.hold("site00", 3, error, lambda: None)
            due = waiting.waits["site00"].due
            assert due is not None and due - now[0] == min(300.0, 10.0 * 2 ** (tries - 1))
            now[0] = due
            waiting.ask_again()
    assert len(list(run.journal.events("site_waits"))) == 1


@pytest.mark.parametrize("behind_endpoint", [True, False])
def test_a_full_disk_that_a_remote_site_tells_of_is_its_own_whatever_it_looks_like_from_here(
    run: RunDirectory, behind_endpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "shares_disk", lambda root, other: True)  # both are below / here
    plan: Any = SimpleNamespace(
        sites={"site00": SimpleNamespace(endpoint=behind_endpoint or None, storage_root=Path("/lus/site00"))}
    )
    waiting = WaitingSites(plan, run)
    named = str(run.artifacts / "update")  # a site may know the path
    error = site_error(storage_error(FULL, named, "cannot write"), "site00", 1)
    if behind_endpoint:
        assert waiting.hold("site00", 1, error, lambda: None)
    else:
        with pytest.raises(StorageUnavailable):
            waiting.hold("site00", 1, error, lambda: None)
