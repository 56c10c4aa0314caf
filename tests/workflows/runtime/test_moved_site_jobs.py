"""Jobs that a dead driver has left where its site is no more: cancelled, or told with the command that cancels them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from batch_sites import slurm_entry

from site_configs.library.resolve import resolve_site
from site_configs.library.schedulers import GONE, UNKNOWN, Answer, JobFacts
from workflows.planning.campaign import SiteEntry
from workflows.records.journal import Journal
from workflows.runtime import moved_site_jobs as leftovers
from workflows.runtime.moved_site_jobs import left_jobs, settle_moved_sites

if TYPE_CHECKING:
    from facilities.slurm import SlurmCluster

HOST = os.uname().nodename
CLUSTER = {"config": "slurm", "partition": "gpu", "storage_root": "/scratch/me"}
HERE = {"config": "local"}


@dataclass
class Script:
    """A scheduler that answers as it is told and notes what it is asked to end."""

    found: list[JobFacts] | None = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    stubborn: tuple[str, ...] = ()
    cancelled: list[str] = field(default_factory=list)

    def find(self, token: str) -> list[JobFacts] | None:
        assert token == "cf-0123456789"
        return self.found

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        return {job_id: self.answers.get(job_id, GONE) for job_id in ids}

    def cancel(self, ids: Sequence[str]) -> list[str]:
        self.cancelled += ids
        return [job_id for job_id in ids if job_id in self.stubborn]


def facts(job_id: str, state: Any = "pending", name: str = "cf-0123456789-ab") -> JobFacts:
    return JobFacts(job_id, name, state, None, None, None, 1, "gpu", None, "", 3600)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(leftovers, "scheduler_for", lambda kind, environment: script)
    return script


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.jsonl")
    yield journal
    journal.close()


def driver(journal: Journal, entry: dict[str, Any], *jobs: str, host: str = HOST) -> None:
    """A driver with this configuration of its site, that submitted these jobs and was killed."""
    first = not journal.records
    journal.write("campaign_opened" if first else "campaign_changed", campaign={"sites": {"alpha": entry}})
    journal.write("driver_started", host=host, resumed=not first)
    for job_id in jobs:
        journal.write("block_submitted", site="alpha", job_id=job_id)


def settle(journal: Journal, entry: dict[str, Any]) -> None:
    """What the next driver does, with this configuration."""
    journal.write("campaign_changed", campaign={"sites": {"alpha": entry}})
    made, path = SiteEntry(**entry), journal.path.parent
    site = resolve_site("alpha", made.config or "alpha", path, made.settings)
    campaign = SimpleNamespace(config_of=lambda label: made.config or label)
    plan: Any = SimpleNamespace(machines={"alpha": site}, campaign=campaign)
    run: Any = SimpleNamespace(journal=journal, path=path, opened={"token": "0123456789abcdef"})
    settle_moved_sites(plan, run)


def told(journal: Journal) -> list[tuple[str, list[str]]]:
    return [(r["event"], list(r["job_ids"])) for r in journal.events("blocks_cancelled", "blocks_left")]


def words(journal: Journal) -> str:
    return str(next(journal.events("blocks_left"))["reason"])


# -- what is left -----------------------------------------------------------------------------------------------


def test_a_job_is_left_until_its_end_is_told(journal: Journal) -> None:
    driver(journal, CLUSTER, "7", "8", "9")
    (left,) = left_jobs(journal)
    assert (left.site, left.config, left.host, left.job_ids) == ("alpha", "slurm", HOST, ("7", "8", "9"))
    journal.write("block_ended", site="alpha", job_id="8")
    journal.write("block_ended", site="beta", job_id="7")  # another site's
    journal.write("blocks_cancelled", site="alpha", job_ids=["9"])
    assert [left.job_ids for left in left_jobs(journal)] == [("7",)]


def test_what_a_driver_of_the_same_configuration_did_not_find_has_ended(journal: Journal) -> None:
    driver(journal, CLUSTER, "7")
    journal.write("driver_started", host=HOST, resumed=True)
    assert left_jobs(journal) == []


def test_what_was_told_is_not_told_again(journal: Journal, script: Script) -> None:
    script.found = None
    driver(journal, CLUSTER, "7")
    for _ in range(2):
        settle(journal, HERE)
        journal.write("driver_started", host=HOST, resumed=True)
    assert told(journal) == [("blocks_left", ["7"])]


# -- what is done about it --------------------------------------------------------------------------------------


def test_what_its_scheduler_still_has_is_cancelled(journal: Journal, script: Script) -> None:
    script.found = [facts("7"), facts("9", "running")]  # 9: its submission was not even noted
    driver(journal, CLUSTER, "7")
    settle(journal, HERE)
    assert script.cancelled == ["7", "9"] and told(journal) == [("blocks_cancelled", ["7", "9"])]


def test_a_job_that_is_over_is_not_worth_a_word(journal: Journal, script: Script) -> None:
    script.answers = {"8": facts("8", "completed")}
    driver(journal, CLUSTER, "7", "8")  # 7 is gone
    settle(journal, HERE)
    assert told(journal) == [] and script.cancelled == []


def test_a_scheduler_that_is_not_here_is_named_with_the_command(journal: Journal, script: Script) -> None:
    script.found = None
    driver(journal, CLUSTER, "7", "8", host="login3")
    settle(journal, HERE)
    assert told(journal) == [("blocks_left", ["7", "8"])]
    assert words(journal) == (
        "alpha: jobs 7, 8 of its earlier configuration (slurm) may still be there; to cancel on login3: scancel 7 8"
    )


@pytest.mark.parametrize(
    "answer", [GONE, UNKNOWN, facts("7", "completed", "vasp"), facts("7", "running", "vasp")], ids=str
)
def test_another_machines_scheduler_is_not_believed(journal: Journal, script: Script, answer: Answer) -> None:
    """It has its own job 7, or none: nothing is cancelled, and the user is told."""
    script.answers = {"7": answer}
    driver(journal, CLUSTER, "7", host="login3")
    settle(journal, HERE)
    assert told(journal) == [("blocks_left", ["7"])] and script.cancelled == []


def test_a_job_that_cannot_be_cancelled_is_told(journal: Journal, script: Script) -> None:
    script.found, script.stubborn = [facts("7"), facts("8")], ("8",)
    script.answers = {"8": facts("8")}
    driver(journal, CLUSTER, "7", "8")
    settle(journal, HERE)
    assert told(journal) == [("blocks_cancelled", ["7"]), ("blocks_left", ["8"])]
    assert words(journal).startswith("alpha: job 8 of its") and words(journal).endswith(f"on {HOST}: scancel 8")


def test_the_command_has_the_variables_that_the_scheduler_needs(journal: Journal, script: Script) -> None:
    script.found = None
    driver(journal, CLUSTER | {"command_environment": {"SLURM_CONF": "/etc/my slurm.conf"}}, "7")
    settle(journal, CLUSTER)
    assert words(journal).endswith(": SLURM_CONF='/etc/my slurm.conf' scancel 7")


def test_a_pbs_job_is_ended_by_qdel(journal: Journal, script: Script) -> None:
    script.found = None
    driver(journal, {"config": "pbs", "queue": "prod", "storage_root": "/scratch/me"}, "7.pbs")
    settle(journal, CLUSTER)
    assert words(journal).endswith(": qdel 7.pbs")


def test_a_site_that_kept_its_scheduler_was_asked_before(journal: Journal, script: Script) -> None:
    script.found = None
    driver(journal, CLUSTER, "7")
    settle(journal, CLUSTER | {"partition": "cpu", "walltime": "1h"})
    assert told(journal) == []


def test_a_configuration_whose_file_is_gone(journal: Journal, script: Script, tmp_path: Path) -> None:
    driver(journal, {"config": str(tmp_path / "gone.py")}, "7")
    settle(journal, HERE)
    assert words(journal).endswith(": scancel or qdel 7")


@pytest.mark.slurm
def test_a_site_that_moves_from_one_cluster_to_another(
    journal: Journal, slurm_site: SlurmCluster, other_slurm: SlurmCluster, tmp_path: Path
) -> None:
    ours = slurm_site.submit("sleep 600", "--job-name=cf-0123456789-ab", "--hold")
    theirs = slurm_site.submit("sleep 600", "--job-name=vasp", "--hold")
    driver(journal, slurm_entry(slurm_site, tmp_path, partition="debug"), ours)
    settle(journal, slurm_entry(other_slurm, tmp_path, partition="batch"))
    assert told(journal) == [("blocks_cancelled", [ours])]
    assert {job_id: job.state for job_id, job in slurm_site.jobs().items() if job_id in (ours, theirs)} == {
        ours: "CANCELLED",
        theirs: "PENDING",
    }
