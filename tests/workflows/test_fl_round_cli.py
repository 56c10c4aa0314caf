"""The command line: help, checks, mistakes. No worker is started here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from campaigns import PROJECT, run, write_campaign

from apps.base.errors import UserMistake
from workflows import fl_round
from workflows.planning.plan import Plan
from workflows.records.run_directory import RunDirectory

HEAVY = ("torch", "transformers", "globus_sdk", "globus_compute_sdk", "parsl", "matplotlib", "pandas")


def test_help_names_every_option_and_exit_code(tmp_path: Path) -> None:
    ended = run(tmp_path, "--help")
    assert ended.returncode == 0
    for word in (
        "CAMPAIGN.yaml",
        "--name",
        "--resume",
        "--sites",
        "--set",
        "--check",
        "--dry-run",
        "-v",
        "130 interrupted",
    ):
        assert word in " ".join(ended.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--check", "--set", "nothing.here=1"]])
def test_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from workflows.fl_round import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_check_prints_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, write_campaign(tmp_path), "--check")
    assert ended.returncode == 0, ended.stderr
    for words in ("3 rounds of fedavg", "all parameters", "site aurora:", "2 tasks: forward_synthesis", "runs/nano"):
        assert words in ended.stdout
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_what_starts_the_workers(tmp_path: Path) -> None:
    ended = run(tmp_path, write_campaign(tmp_path), "--dry-run")
    assert ended.returncode == 0
    assert "aurora: processes on this machine" in ended.stdout and "export OMP_NUM_THREADS=1" in ended.stdout
    assert not (tmp_path / "runs").exists()


MISTAKES = [
    (["--set", "training.stepz=1"], "nano.yaml: training.stepz: unknown key, did you mean 'steps'?"),
    (["--sites", "mars"], "--sites mars: the campaign has no site 'mars'"),
    (["--sites", "auroar=local"], "--sites auroar=local: the campaign has no site 'auroar', did you mean 'aurora'?"),
    (["--sites", "aurora,aurora"], "--sites: aurora is named twice"),
    (["--sites", "aurora="], "--sites aurora=: name the machine after =, for example aurora=local"),
    (["--set", "data.prompt=Q: {{input}}"], "data.prompt: write {input} with single braces"),
    (["--set", "data.prompt={input} {output}"], "data.prompt: {output} is no place"),
    (["--set", "data.prompt={0}"], "data.prompt: {0} is no place"),
    (["--set", "data.prompt={input} or {input}"], "data.prompt: must contain {input}, the place of the question, once"),
    (["--set", "model=tiny"], "model: a section with keys (source, dtype, traffic, adapter, ...), got 'tiny'"),
    (["--resume", "runs/x", "--name", "y"], "--name: a resumed run keeps its name"),
    (["--sites", "aurora=locla"], "sites.aurora: unknown site config 'locla', did you mean 'local'?"),
    (["--sites", "aurora=none.py"], "none.py"),
    (["--set", "sites.aurora.thread=2"], "sites.aurora: thread: unknown setting, did you mean 'threads'?"),
    (["--set", "sites.aurora.threads=two"], "sites.aurora: threads: "),
    (["--set", "sites.aurora.tasks=[retrosynthesi]"], "sites.aurora.tasks: unknown task or family 'retrosynthesi'"),
    (
        ["--set", "sites.frontier.tasks=[retrosynthesis]"],
        "sites.frontier.tasks: retrosynthesis already belongs to aurora",
    ),
    (["--set", "data.source=nowhere/data.zip"], "nowhere/data.zip does not exist"),
    (["--set", "evaluation.split=exam"], "evaluation.split: unknown split 'exam'"),
    (["--set", "model={source: ./nowhere}"], "/nowhere is not a model folder"),
    (["--set", "model.adapter={last_layers: 9}"], "model.adapter.last_layers: 9, but tiny has 1 layer"),
    (["--set", "sites.server={config: local}"], "sites.server: choose another name"),
    (["--check", "--resume", "runs/x"], "runs/x is no run directory: it has no journal.jsonl"),
    (["--name", "a/b"], "--name 'a/b': use letters"),
    (["--name", ".."], "--name '..': use letters"),
    (["--name", ""], "--name '': use letters"),
    (["--set", "sites.aurora.threads=0"], "sites.aurora: threads: Input should be greater than 0"),
    (["--set", "sites.aurora.device=tpu"], "sites.aurora: device: Input should be 'cpu', 'cuda' or 'xpu'"),
    (
        ["--set", "sites.aurora.storage_root=s", "--set", "sites.frontier.storage_root=s"],
        "each site needs its own storage",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message[:50] for _, message in MISTAKES])
def test_a_mistake_ends_with_one_line_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run(tmp_path, write_campaign(tmp_path), *arguments)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr and len(ended.stderr.splitlines()) == 1 and ended.stdout == ""
    assert not (tmp_path / "runs").exists()


ROOTS = {"perlmutter": "/pscratch/a", "polaris": "/eagle/a", "aurora": "/flare/a", "frontier": "/lustre/orion/a"}
ID = "00000000-0000-0000-0000-00000000000"


def filled_in(folder: Path, campaign: Path) -> Path:
    """Write a copy of a shipped campaign with everything that is a user's own."""
    raw = yaml.safe_load(campaign.read_text())
    raw["globus"] = {"collection": f"{ID}0", "folder": str(folder)}
    for number, (name, root) in enumerate(ROOTS.items()):
        entry = raw["sites"][name]
        entry |= {"account": "abc", "storage_root": f"{root}/store"}
        if entry.get("route") == "globus":
            ends = {"endpoint": f"{ID}{number}", "collection": f"{ID}{number}", "collection_folder": f"{root}/exchange"}
            entry |= {**ends, "python_env": f"{root}/env", "data": f"{root}/data.zip"}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.mark.parametrize("name", ["smolinstruct_llama2_7b", "smolinstruct_llama2_7b_globus"])
def test_the_campaign_of_four_machines_lists_what_is_missing(tmp_path: Path, name: str) -> None:
    reference = PROJECT / "workflows" / "campaigns" / f"{name}.yaml"
    nameless = run(tmp_path, reference, "--check")
    assert nameless.returncode == 2
    for site in ROOTS:
        assert f"sites.{site}: {site} needs account" in nameless.stderr
    checked = run(tmp_path, filled_in(tmp_path, reference), "--check")
    assert "smolinstruct/data.zip does not exist" in checked.stdout
    assert "block of frontier:   2 nodes for 24:00:00 in queue extended" in checked.stdout
    submitting = "sites.polaris: qsub, qstat, qselect, qdel are not on PATH: start on a login" in checked.stdout
    assert submitting == (name == "smolinstruct_llama2_7b")
    assert checked.returncode == (0 if submitting else 2)  # evaluation on a GPU that this machine does not have
    started = run(tmp_path, tmp_path / "mine.yaml")
    assert started.returncode == 2 and "/smolinstruct/data.zip does not exist" in started.stderr


def test_two_machines_cannot_be_reached_from_one_host(tmp_path: Path) -> None:
    path = filled_in(tmp_path, PROJECT / "workflows" / "campaigns" / "smolinstruct_llama2_7b.yaml")
    ends = [word for key in ("route", "endpoint") for word in ("--set", f"sites.aurora.{key}=null")]
    checked = run(tmp_path, path, "--check", *ends)
    assert checked.returncode == 2
    assert (
        "PROBLEM  jobs of Polaris and Aurora cannot be submitted from one host: start on a login node of Polaris"
        " (sites.polaris), and reach the others through Globus: sites.aurora.route=globus (docs/globus.md)"
    ) in checked.stdout


def test_the_paths_of_a_site_behind_globus_are_those_at_the_site(tmp_path: Path) -> None:
    path = filled_in(tmp_path, PROJECT / "workflows" / "campaigns" / "smolinstruct_llama2_7b.yaml")
    sets = ("sites.aurora.data=null", "sites.frontier.data=data.zip", "sites.perlmutter.model=./model")
    checked = run(tmp_path, path, "--check", *(word for text in sets for word in ("--set", text)))
    assert checked.returncode == 2
    for words in (
        "sites.aurora.data: missing; data.source is a path of this machine, and Aurora (ALCF) keeps its records itself",
        "sites.frontier.data: data.zip is relative; jobs there start in another folder",
        "sites.perlmutter.model: ./model is relative",
    ):
        assert f"PROBLEM  {words}" in checked.stdout


def test_a_site_is_one_new_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.py").write_text(
        """
from pathlib import Path
from site_configs.library.site import Site
from site_configs.local import _provider

def site(name: str, run_dir: Path, *, account: str) -> Site:
    return Site(name=name, machine=f"my cluster, account {account}", route="local",
                storage_root=run_dir / name, provider=_provider)
"""
    )
    checked = run(
        tmp_path,
        write_campaign(tmp_path),
        "--sites",
        "aurora=cluster.py,frontier",
        "--check",
        "--set",
        "sites.aurora.account=ABC",
    )
    assert checked.returncode == 0, checked.stderr
    assert "site aurora:         my cluster, account ABC" in checked.stdout
    lacking = run(tmp_path, write_campaign(tmp_path), "--sites", "aurora=cluster.py,frontier", "--check")
    assert lacking.returncode == 2 and "account" in lacking.stderr


def test_a_mistake_found_while_a_run_is_open_is_recorded_and_advises_no_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(plan: Plan, run: RunDirectory) -> int:
        raise UserMistake("site polaris has no tokenizer", remedy="Copy it there")

    monkeypatch.setattr(fl_round, "run_campaign", refused)
    monkeypatch.setattr(fl_round, "stop_in_order", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert fl_round.main(["--name", "wrong"]) == 2
    told = capsys.readouterr().err
    assert "site polaris has no tokenizer. Copy it there" in told and "--resume" not in told
    last = json.loads((tmp_path / "runs" / "wrong" / "journal.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "driver_stopped" and last["reason"] == "site polaris has no tokenizer. Copy it there"
