"""Changes of a campaign at a resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import nano, write_campaign
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import UserMistake
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import load_campaign
from workflows.records.changes import keep_campaign, resumed_campaign, rounds_asked, schedule_rounds
from workflows.records.run_directory import RunDirectory, choose_path, open_existing, open_new


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_campaign(tmp_path)


@pytest.fixture
def run(tmp_path: Path, source: Path) -> RunDirectory:
    return open_new(tmp_path / "runs" / "nano", load_campaign(source), source, [], None)


def resumed(run: RunDirectory, *where: Any) -> Campaign:
    campaign = resumed_campaign(run, *where)
    keep_campaign(run, campaign)
    return campaign


def test_nothing_changed(run: RunDirectory) -> None:
    assert resumed(run, None, [], None).rounds == 3
    assert not list(run.journal.events("campaign_changed"))


def test_rounds_may_rise_and_are_remembered(run: RunDirectory) -> None:
    assert resumed(run, None, ["rounds=5"], None).rounds == 5
    assert resumed(run, None, [], None).rounds == 5
    assert rounds_asked(run.journal) == [3, 5]
    with pytest.raises(UserMistake, match="rounds: 5 -> 4"):
        resumed(run, None, ["rounds=4"], None)


def test_an_edited_campaign_file_is_refused_with_the_difference(run: RunDirectory, source: Path) -> None:
    source.write_text(yaml.safe_dump(nano(training={"steps": 9, "batch_size": 4, "learning_rate": 0.003})))
    with pytest.raises(UserMistake, match=r"training\.steps: 3 -> 9"):
        resumed(run, None, [], None)


def test_a_site_that_is_left_out_is_named_with_what_to_do_instead(run: RunDirectory) -> None:
    with pytest.raises(UserMistake, match=r"keeps its sites, frontier would be missing.*strategy\.quorum=N"):
        resumed(run, None, [], "aurora")


def test_an_edited_campaign_file_may_raise_the_rounds(run: RunDirectory, source: Path) -> None:
    source.write_text(yaml.safe_dump(nano(rounds=4)))
    assert resumed(run, None, [], None).rounds == 4


def test_the_kept_campaign_file_counts_as_well(run: RunDirectory) -> None:
    kept = run.path / "campaign.yaml"
    kept.write_text(kept.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(UserMistake, match="seed: 3 -> 4"):
        resumed(run, None, [], None)


def test_a_site_may_move_to_another_machine_but_keeps_its_tasks(run: RunDirectory) -> None:
    moved = resumed(run, None, ["sites.aurora.threads=2"], None)
    assert moved.sites["aurora"].settings == {"threads": 2}
    with pytest.raises(UserMistake, match=r"sites\.aurora\.tasks"):
        resumed(run, None, ["sites.aurora.tasks=[retrosynthesis]"], None)


def test_a_deadline_helps_a_round_that_waits_for_a_queue(run: RunDirectory) -> None:
    changed = resumed(run, None, ["strategy.quorum=1", "strategy.deadline_s=20"], None)
    assert changed.strategy.model_dump()["deadline_s"] == 20.0


def test_a_site_may_move_to_a_machine_that_does_not_know_its_settings(run: RunDirectory) -> None:
    kept = run.path / "campaign.yaml"
    edited = yaml.safe_load(kept.read_text())
    plain = dict(edited["sites"]["aurora"])
    cluster = {"config": "slurm", "partition": "gpu", "storage_root": "/s", "command_environment": {"A": "1", "B": "2"}}
    edited["sites"]["aurora"] = plain | cluster
    kept.write_text(yaml.safe_dump(edited))
    assert resumed(run, None, [], None).sites["aurora"].settings["partition"] == "gpu"
    del edited["sites"]["aurora"]["command_environment"]["B"], edited["sites"]["aurora"]["partition"]
    kept.write_text(yaml.safe_dump(edited))
    expected = {"storage_root": "/s", "command_environment": {"A": "1"}}
    assert resumed(run, None, [], None).sites["aurora"].settings == expected
    edited["sites"]["aurora"] = plain
    kept.write_text(yaml.safe_dump(edited))
    moved = resumed(run, None, [], None)
    assert moved.sites["aurora"].settings == {} and moved.sites["aurora"].tasks == plain["tasks"]
    assert list(run.journal.events("campaign_changed"))[-1]["changes"]["sites.aurora.storage_root"] == ("/s", None)
    assert resumed(run, None, [], None) == moved


def test_a_settled_type_is_no_change(tmp_path: Path, source: Path) -> None:

    run = open_new(tmp_path / "runs" / "auto", load_campaign(source), source, [], None)
    assert resumed(run, source, [], None).model.dtype == "float32"


def test_a_run_of_other_code_is_refused(run: RunDirectory) -> None:
    journal = run.path / "journal.jsonl"
    journal.write_text(journal.read_text().replace(run.opened["campaign_code"], "0" * 16))
    run.close()
    with pytest.raises(UserMistake, match="was begun with campaign code 0000"):
        open_existing(run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no run directory"):
        open_existing(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(b'{"seq":1,"ev')
    with pytest.raises(UserMistake, match="never began"):
        open_existing(tmp_path)


def test_one_driver_at_a_time(run: RunDirectory) -> None:
    with pytest.raises(UserMistake, match="in use by another driver"):
        open_existing(run.path)
    run.close()
    open_existing(run.path).close()


def test_names_are_numbered_and_unfinished_runs_named(
    run: RunDirectory, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign = load_campaign(source)
    assert choose_path(campaign, None) == (Path("runs/nano-2"), Path("runs/nano"))
    assert choose_path(campaign, "other") == (Path("runs/other"), None)
    with pytest.raises(UserMistake, match=rf"runs/nano exists and is running \(process {os.getpid()} on "):
        choose_path(campaign, "nano")
    run.lock.close()
    with pytest.raises(UserMistake, match=r"unfinished; resume it: .* --resume runs/nano"):
        choose_path(campaign, "nano")
    run.journal.write("campaign_finished", rounds=3, seconds=1)
    assert choose_path(campaign, None) == (Path("runs/nano-2"), None)


@given(st.sets(st.integers(1, 50), min_size=1), st.data())
def test_a_round_keeps_the_schedule_it_was_first_requested_with(requested: set[int], data: st.DataObject) -> None:
    ordered = sorted(requested)
    number = data.draw(st.integers(1, ordered[-1]))
    total = schedule_rounds(ordered, number)
    assert total >= number and total in requested
    assert schedule_rounds([*ordered, ordered[-1] + 5], number) == total


def test_the_server_may_move_and_its_settings_with_it(run: RunDirectory) -> None:
    kept = run.path / "campaign.yaml"
    edited = yaml.safe_load(kept.read_text())
    edited["evaluation"]["site"] = {"config": "slurm", "storage_root": "/s", "partition": "gpu"}
    kept.write_text(yaml.safe_dump(edited))
    assert resumed(run, None, ["server.site=aurora"], None).server.site == "aurora"
    del edited["evaluation"]["site"]["partition"]
    kept.write_text(yaml.safe_dump(edited | {"server": {"site": "aurora"}}))
    moved = resumed(run, None, [], None).evaluation.site
    assert moved is not None and moved.model_dump() == {"config": "slurm", "storage_root": "/s"}
    assert resumed(run, None, ["evaluation.site=null"], None).evaluation.site is None
    changes = [record["changes"] for record in run.journal.events("campaign_changed")]
    assert [sorted(change) for change in changes] == [
        ["evaluation.site", "server.site"],
        ["evaluation.site.partition"],
        ["evaluation.site"],
    ]
