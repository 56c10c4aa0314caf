"""The report of a run: its numbers, its text, its page, and runs that are damaged."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import patience
from synthetic_run import MODEL, OPENED, SAMPLES, SyntheticRun, batch_run, finished_run, start_run

from apps.base.errors import UserMistake
from workflows import report
from workflows.report import main
from workflows.reporting import captions, loss_captions, tables
from workflows.reporting.report import write_report
from workflows.reporting.run_record import load_run
from workflows.reporting.run_summary import summarize

REPORT = Path(report.__file__)
ALL_PICTURES = ["bytes_seconds.png", "final_heatmap.png", "loss.png", "loss_per_task.png", "timeline.png"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    run = finished_run(tmp_path_factory.mktemp("runs") / "four-sites")
    run.write()
    return run


@pytest.fixture(scope="module")
def written(finished: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of the finished run outside its run directory."""
    return write_report(finished.directory, tmp_path_factory.mktemp("written"))


def tiny_run(folder: Path, losses: dict[tuple[int, str, str], Any], **sites: list[str] | None) -> Path:
    """Write a run directory with these losses by (round, model, task) and no journal."""
    folder.mkdir()
    entries = {site: {"tasks": tasks} for site, tasks in sites.items()}
    campaign = {"name": "tiny", "rounds": 1, "sites": entries}
    (folder / "campaign.yaml").write_text(yaml.safe_dump(campaign, sort_keys=False))
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["round", "model", "task", "loss", "samples", "tokens", "artifact"])
        writer.writerows([*key, loss, 1, 1, "a"] for key, loss in losses.items())
    return folder


TWO_TASKS = {
    (0, "global", "t1"): 2.0,
    (0, "global", "t2"): 4.0,
    (1, "global", "t1"): 1.0,
    (1, "global", "t2"): 2.0,
    (1, "north", "t1"): 0.5,
    (1, "north", "t2"): 3.0,
    (1, "south", "t1"): 1.5,
    (1, "south", "t2"): 2.5,
}


class Page(HTMLParser):
    """The visible text of a page, the tags it uses and where it points."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_means_are_unweighted_over_the_tasks(tmp_path: Path) -> None:
    run = load_run(tiny_run(tmp_path / "run", TWO_TASKS, north=["t1"], south=["t2"]))
    assert list(run.mean_losses.columns) == ["global", "north", "south"]
    assert list(run.mean_losses["global"]) == [3.0, 1.5]
    assert run.mean_losses.loc[1, "north"] == 1.75


def test_the_summary_of_two_tasks(tmp_path: Path) -> None:
    summary = summarize(load_run(tiny_run(tmp_path / "run", TWO_TASKS, north=["t1"], south=["t2"])))
    assert (summary.rounds, summary.loss_first, summary.loss_last) == (1, 3.0, 1.5)
    assert summary.site_losses == {"north": 1.75, "south": 2.0}
    assert summary.best_site == "north"
    assert summary.global_wins == ("t2",)
    assert summary.owner_wins == ("t1",)
    assert summary.compared == 2


def test_a_tie_is_a_win_of_neither(tmp_path: Path) -> None:
    losses = {(1, "global", "t"): 1.0, (1, "north", "t"): 1.0}
    summary = summarize(load_run(tiny_run(tmp_path / "run", losses, north=["t"])))
    assert (summary.global_wins, summary.owner_wins, summary.compared) == ((), (), 1)


def test_a_mean_over_some_of_the_tasks_is_no_mean(tmp_path: Path) -> None:
    losses = {key: loss for key, loss in TWO_TASKS.items() if key != (1, "global", "t2")}
    summary = summarize(load_run(tiny_run(tmp_path / "run", losses, north=["t1"], south=["t2"])))
    assert (summary.rounds, summary.loss_last) == (0, 3.0)
    assert summary.compared == 1


def test_a_row_written_again_after_a_resume_counts_once_and_the_last_counts(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "run", TWO_TASKS, north=["t1"], south=["t2"])
    with (folder / "metrics.csv").open("a") as stream:
        stream.write("1,global,t1,0.25,1,1,a\n")
    assert load_run(folder).losses.loc[1, ("global", "t1")] == 0.25


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", ""])
def test_a_loss_that_is_not_finite_is_left_out_with_a_note(tmp_path: Path, bad: str) -> None:
    losses = TWO_TASKS | {(1, "global", "t1"): bad}
    run = load_run(tiny_run(tmp_path / "run", losses, north=["t1"], south=["t2"]))
    assert summarize(run).rounds == 0
    assert run.notes == ("1 loss not finite and left out, the first in round 1 (model global, task t1).",)


def test_owners_are_dealt_as_the_campaign_deals_them(tmp_path: Path) -> None:
    tasks = ["forward_synthesis", "retrosynthesis", "molecule_captioning", "molecule_generation"]
    losses = {(0, "global", task): 1.0 for task in tasks}
    run = load_run(tiny_run(tmp_path / "run", losses, north=["chemical_reaction"], south=None))
    assert run.owners["retrosynthesis"] == ["north"]
    assert run.owners["molecule_captioning"] == ["south"]
    assert list(run.owners)[:2] == ["forward_synthesis", "retrosynthesis"]


def test_tasks_without_a_score_are_not_shown_and_unknown_names_are_ignored(tmp_path: Path) -> None:
    losses = {(0, "global", "t1"): 1.0, (0, "global", "t2"): 1.0}
    run = load_run(tiny_run(tmp_path / "run", losses, north=["t1", "no_such_task"]))
    assert run.owners == {"t1": ["north"], "t2": []}


def test_the_summary_of_a_finished_run(finished: SyntheticRun) -> None:
    summary = summarize(load_run(finished.directory))
    assert (summary.state, summary.finished, summary.rounds, summary.compared) == ("finished", True, 8, 14)
    assert summary.tokens == 8 * 70 * sum(SAMPLES.values())
    assert summary.nbytes_moved == 8 * 4 * 2 * MODEL["adapter"]
    assert summary.nbytes_full == 8 * 4 * 2 * MODEL["full"]
    assert summary.wall_s == pytest.approx(finished.time - OPENED)
    last = [row["loss"] for row in finished.rows if (row["round"], row["model"]) == (8, "global")]
    assert summary.loss_last == pytest.approx(sum(last) / 14)
    assert summary.best_site == "polaris"


def test_the_owner_wins_are_those_in_the_metrics(finished: SyntheticRun) -> None:
    summary = summarize(load_run(finished.directory))
    final = {(row["model"], row["task"]): row["loss"] for row in finished.rows if row["round"] == 8}
    owner = {task: site for site, tasks in finished.tasks.items() for task in tasks}
    better = {task for task in owner if final[owner[task], task] < final["global", task]}
    assert set(summary.owner_wins) == better
    lowest = {task: min(final[site, task] for site in finished.tasks) for task in owner}
    assert set(summary.global_wins) == {task for task in owner if final["global", task] < lowest[task]}


def test_the_page_of_a_finished_run(finished: SyntheticRun, written: Path) -> None:
    page, summary = Page(written.read_text()), summarize(load_run(finished.directory))
    assert written.name == "report.html"
    assert sorted(path.name for path in (written.parent / "figures").iterdir()) == ALL_PICTURES
    assert "unfinished" not in page.text
    assert f"below every site's model on {len(summary.global_wins)} of 14 tasks" in page.text
    assert f"on {len(summary.owner_wins)} of 14 the model of a site that trains on the task is below it" in page.text
    assert f"fell from {summary.loss_first:.3f} to {summary.loss_last:.3f}" in page.text
    assert "55 times as much" in page.text
    assert "Refused" not in page.text


def test_the_page_needs_nothing_but_itself(written: Path) -> None:
    html = written.read_text()
    page = Page(html)
    assert page.tags.count("img") == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", re.sub(r"base64,[^\"]*", "", html))


def test_nothing_else_is_written(finished: SyntheticRun, written: Path) -> None:
    inputs = ["campaign.yaml", "environment.json", "journal.jsonl", "metrics.csv"]
    assert sorted(path.name for path in finished.directory.iterdir()) == inputs
    assert sorted(path.name for path in written.parent.iterdir()) == ["figures", "report.html"]


def test_the_round_table_adds_up(finished: SyntheticRun) -> None:
    rows = tables.round_table(load_run(finished.directory)).rows
    assert [row[0] for row in rows] == [str(number) for number in range(9)]
    assert rows[0][2:7] == ["–", "–", "0", "0 B", "0 B"]
    assert rows[1][3:7] == ["4", f"{70 * sum(SAMPLES.values()):,}", "19.5 MB", "19.5 MB"]


def test_the_site_table_has_the_sums_of_each_site(finished: SyntheticRun) -> None:
    rows = {row[0]: row for row in tables.site_table(load_run(finished.directory)).rows}
    assert rows["aurora"][1:7] == ["aurora", "2", "8", f"{8 * 3840:,}", f"{8 * 3840 * 70:,}", "240"]
    training_s = float(rows["aurora"][7].replace(",", ""))
    assert training_s == pytest.approx(8 * 3840 / 4.4, rel=0.05)
    assert rows["aurora"][10].endswith("%")


def test_the_task_table_names_the_owner(finished: SyntheticRun) -> None:
    table = tables.task_table(load_run(finished.directory))
    assert list(table.columns) == ["task", "owner", "samples", "global", *finished.tasks]
    assert {row[0]: row[1] for row in table.rows}["retrosynthesis"] == "aurora"
    assert len(table.rows) == 14


def test_only_the_untrained_model_so_far(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run").write()
    page = page_of(folder)
    assert "This campaign is unfinished: still running, or its driver was killed." in page.text
    assert "Only the untrained model is scored" in page.text
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "loss.png",
        "loss_per_task.png",
        "timeline.png",
    ]


def test_before_anything_was_scored(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    run.rows, run.events = [], run.events[:2]
    folder = run.write()
    (folder / "metrics.csv").unlink()
    (folder / "environment.json").unlink()
    assert "no model has been scored yet" in page_of(folder).text
    assert not (folder / "figures").exists()


def test_an_empty_journal(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", rounds=1, sites=1).write()
    (folder / "journal.jsonl").write_text("")
    page = page_of(folder)
    assert "unfinished" in page.text
    assert "wall time" in page.text


def test_a_stopped_driver_is_reported_with_its_reason(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", sites=2, tasks=2)
    run.round(1)
    run.event("driver_stopped", reason="interrupted by <Ctrl-C>")
    page = page_of(run.write())
    assert "unfinished: the driver stopped (interrupted by <Ctrl-C>)" in page.text
    assert "In 1 round of 8 planned" in page.text


def test_a_resumed_run_with_problems(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", tasks=4)
    run.round(1)
    run.round(2, refused=("aurora",))
    run.resume(5400.0)
    failure = {"error": "TransferFailed", "message": "bad hash"}
    run.event("task_failed", app="stage_in", round=3, site="polaris", **failure)
    run.round(3)
    folder = run.write()
    problems = tables.problem_table(load_run(folder))
    assert problems is not None
    refused, failed = sorted(problems.rows, key=lambda row: row[1])
    assert refused[1:] == ["2", "aurora", "update refused", "norm 812.4 > bound <10>"]
    assert failed[1:] == ["3", "polaris", "task failed", "stage_in: TransferFailed: bad hash"]
    assert tables.round_table(load_run(folder)).rows[2][3] == "3"
    page = page_of(folder)
    assert "The driver was down for at most 90 min in 1 gap." in page.text
    assert "norm 812.4 > bound <10>" in page.text


def test_a_cut_off_last_line_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", rounds=1, sites=1).write()
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    page = page_of(folder)
    assert "The last line of journal.jsonl is unfinished and was left out." in page.text


def test_every_value_from_the_run_is_escaped(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", sites=1)
    run.round(1, refused=())
    run.event("update_refused", site="perlmutter", round=1, reason="<script>alert(1)</script>")
    folder = run.write()
    campaign = yaml.safe_load((folder / "campaign.yaml").read_text())
    campaign["name"] = "<img src=x onerror=alert(2)>"
    (folder / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    (folder / "environment.json").write_text(json.dumps({"host": "</pre><script>3</script>"}))
    page = page_of(folder)
    assert "script" not in page.tags
    assert page.tags.count("img") == 5
    assert "<script>alert(1)</script>" in page.text


def test_a_loss_that_does_not_fall_is_reported_so(tmp_path: Path) -> None:
    losses = TWO_TASKS | {(1, "global", "t1"): 9.0}
    run = load_run(tiny_run(tmp_path / "run", losses, north=["t1"], south=["t2"]))
    summary = summarize(run)
    assert "did not fall: it went from 3.000 to 5.500" in captions.lead_text(run, summary)
    caption = loss_captions.loss_caption(run, summary)
    assert "The last scores of 0 of 2 site models are above it. It rose in round 1." in caption
    assert "worse than the first one: the mean test loss rose from 3.000 to 5.500" in summary.verdict.text


def test_a_campaign_of_the_full_model_claims_no_saving(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=1, adapter=False).write()
    run = load_run(folder)
    assert "in the same transfers: 1.08 GB, the same." in captions.cost_caption(run, summarize(run))
    assert "all parameters trained" in captions.subtitle(run)


def test_tasks_that_moved_nothing_do_not_count_as_transfers_of_the_full_model(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", sites=2, tasks=2, rounds=1, adapter=False)
    run.round(1)
    for site in run.tasks:  # what Globus has fetched or what was there before
        run.task("stage_in", 1, site, run.time, run.time, run.time + 1, nbytes_moved=0)
    folder = run.write()
    read = load_run(folder)
    summary = summarize(read)
    assert summary.nbytes_full == summary.nbytes_moved == 4 * MODEL["full"]
    assert ", the same." in captions.cost_caption(read, summary)


def test_local_sites_wait_for_a_worker_and_batch_sites_in_a_queue(finished: SyntheticRun, tmp_path: Path) -> None:
    local, batch = load_run(finished.directory), load_run(batch_run(tmp_path / "batch").write())
    for run, wait, share, column in (
        (local, "The longest wait for a worker was", "waiting for a worker.", "waiting [s]"),
        (batch, "The longest wait in a queue was", "waiting in queues.", "queue [s]"),
    ):
        assert wait in captions.timeline_caption(run)
        assert captions.cost_caption(run, summarize(run)).endswith(share)
        assert column in tables.site_table(run).columns


def test_the_longest_wait_and_the_idlest_site_are_named(finished: SyntheticRun) -> None:
    run = load_run(finished.directory)
    waits = [i for i in run.timeline.intervals if i.phase == "waiting in queue"]
    worst = max(waits, key=lambda wait: wait.length_s)
    caption = captions.timeline_caption(run)
    assert f"at {worst.row} in round {worst.round}" in caption
    assert "driver was down" not in caption


def test_a_model_that_missed_the_last_round_shows_its_last_score(tmp_path: Path) -> None:
    losses = TWO_TASKS | {(2, "global", "t1"): 0.8, (2, "global", "t2"): 1.0}
    run = load_run(tiny_run(tmp_path / "run", losses, north=["t1"], south=["t2"]))
    assert run.final_losses.loc["t1", "north"] == 0.5
    assert run.final_losses.loc["t2", "global"] == 1.0


@pytest.mark.parametrize("options", [{"sites": 1}, {"sites": 2, "tasks": 1}, {"sites": 12}])
def test_campaigns_of_every_size(tmp_path: Path, options: dict[str, int]) -> None:
    folder = finished_run(tmp_path / "run", rounds=2, **options).write()
    page = page_of(folder)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ALL_PICTURES
    assert f"{options['sites']} site" in page.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("campaign.yaml", None, "is this a run directory?"),
        ("campaign.yaml", "a: [", "is not YAML"),
        ("campaign.yaml", "name: x\n", "does not map each site"),
        ("campaign.yaml", "sites: {north: 3}\n", "does not map each site"),
        ("metrics.csv", "round,model\n0,global\n", "is not a metrics table"),
        ("metrics.csv", "", "is not a metrics table"),
        ("metrics.csv", "round,model,task,loss\nfirst,global,t,1.0\n", "is not a metrics table"),
        ("journal.jsonl", "hello\n", "is not a journal"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, words: str
) -> None:
    folder = finished_run(tmp_path / "run", rounds=1).write()
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err and name in captured.err


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = start_run(tmp_path / "run").write()
    (tmp_path / "file").write_text("in the way")
    assert main([str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_command_prints_the_path_of_the_page(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run", sites=1, tasks=1).write()
    command = [sys.executable, str(REPORT), str(folder), "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=REPORT.parents[1],
        env={"PYTHONPATH": str(REPORT.parents[1])},
    )
    assert (done.returncode, done.stdout) == (0, f"report: {tmp_path / 'report.html'}\n")


def test_help_and_a_missing_run_answer_at_once(tmp_path: Path) -> None:
    for arguments, code in ((["--help"], 0), ([str(tmp_path / "none")], 2)):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(REPORT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(REPORT.parents[1])},
        )
        assert done.returncode == code
        assert time.monotonic() - begun < patience(5.0)  # a second on a quiet machine
        assert "matplotlib" not in done.stderr and "pandas" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_run_raises_an_error_of_the_project(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no such run directory"):
        write_report(tmp_path / "none")


def test_a_summary_without_sites_has_no_best_site(finished: SyntheticRun) -> None:
    summary = replace(summarize(load_run(finished.directory)), site_losses={})
    assert summary.best_site is None
