"""Commands and workers find this project's packages, whatever else has their names, and without an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from campaigns import journal, write_campaign
from site_policy import write_policy
from training_site import bare_environment

from apps.base import own_packages
from apps.base.own_packages import PACKAGES, ROOT, foreign_package
from apps.base.versions import VersionMismatch, code_version, require_same_code
from apps.trust.policy_file import POLICY_VARIABLE
from workflows.globus.compute.bootstrap import PYTHON, STASH, call_site

SCRIPTS = sorted(path for path in (ROOT / "workflows").glob("*.py") if path.name != "__init__.py")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter with the libraries and without this project: an installation's import hook is not run."""
    folder = bare_environment(tmp_path_factory.mktemp("clone") / "environment")
    libraries = sysconfig.get_path("purelib")
    Path(sysconfig.get_path("purelib", vars={"base": str(folder)}), "libraries.pth").write_text(f"{libraries}\n")
    pool = Path(sys.executable).with_name("process_worker_pool.py").read_text().split("\n", 1)[1]
    program = folder / "bin" / "process_worker_pool.py"
    program.write_text(f"#!{folder / 'bin' / 'python'}\n{pool}")
    program.chmod(0o755)
    return folder / "bin" / "python"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder with a user's own module and packages under the names of ours."""
    folder = tmp_path / "mine"
    for name in ("apps", "site_configs", "workflows"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    (folder / "data.py").write_text("raise SystemExit('the wrong module')\n")
    return folder


def variables(hostile: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(hostile), "OMP_NUM_THREADS": "1", **more}


def call(command: list[object], hostile: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the hostile folder, which is on PYTHONPATH as well."""
    words = list(map(str, command))
    return subprocess.run(words, cwd=hostile, env=variables(hostile, **more), capture_output=True, text=True)


def test_the_interpreter_of_these_tests_has_no_project(python: Path, hostile: Path) -> None:
    ended = call([python, "-P", "-c", "import torch, apps"], hostile)
    assert ended.stderr.strip() == "the wrong package"
    ended = call([python, "-P", "-c", "import torch, apps"], hostile, PYTHONPATH="")
    assert "No module named 'apps'" in ended.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_runs_from_a_clone_beside_packages_of_the_same_names(
    script: Path, python: Path, hostile: Path
) -> None:
    ended = call([python, script, "--help"], hostile)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: "), ended.stderr


@pytest.mark.parametrize("options", [["-P"], ["-I"]])
def test_a_whole_check_does_so_too(options: list[str], python: Path, hostile: Path) -> None:
    script = ROOT / "workflows" / "fl_round.py"
    ended = call([python, *options, script, write_campaign(hostile), "--check"], hostile)
    assert ended.returncode == 0 and "site aurora:" in ended.stdout, ended.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_a_foreign_package_that_is_loaded_already_is_refused_in_one_line(
    name: str, python: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{name}.py").touch()
    (tmp_path / "sitecustomize.py").write_text(f"import {name}\n")
    ended = call([python, ROOT / "workflows" / "report.py", "--help"], tmp_path)
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert f"another package under the name '{name}'" in ended.stderr and str(tmp_path) in ended.stderr


def test_a_worker_refuses_a_foreign_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert foreign_package(PACKAGES) is None
    monkeypatch.setattr(own_packages, "ROOT", tmp_path)
    with pytest.raises(VersionMismatch, match="site aurora: .*another package under the name 'apps'"):
        require_same_code(code_version(), "aurora")


def test_the_worker_behind_globus_finds_the_project(
    python: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", f"{hostile}{os.pathsep}{ROOT}")
    monkeypatch.setenv(PYTHON, str(python))
    monkeypatch.setenv(POLICY_VARIABLE, str(write_policy(hostile / "policy", hostile)))
    request = {"function": "apps.site:site_status", "args": [{"site": "aurora", "round": 0}, str(hostile)]}
    try:
        found = json.loads(call_site(json.dumps(request)))
    finally:
        for child in vars(sys.modules.pop(STASH))["children"].values():
            child.kill()
            child.wait()
    assert found["result"]["finished"] is None, found


@pytest.mark.campaign
def test_a_whole_campaign_with_ranks_runs_from_a_clone_in_a_folder_of_hostile_names(
    python: Path, hostile: Path
) -> None:
    settings: list[Any] = ["--set", "rounds=1", "--set", "sites.aurora.ranks=2"]
    ended = call([python, ROOT / "workflows" / "fl_round.py", write_campaign(hostile), *settings], hostile)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {r["site"] for r in journal(hostile / "runs" / "nano", "task_done") if r["app"] == "local_train"} == {
        "aurora",
        "frontier",
    }
