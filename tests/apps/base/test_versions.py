"""Hashes of the worker code and of the campaign code, and versions of libraries."""

from __future__ import annotations

import ast
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from apps.base.errors import VersionMismatch
from apps.base.own_packages import PACKAGES, ROOT
from apps.base.versions import LOWEST, Comparison, code_version, compare_versions, library_versions, require_same_code
from workflows.records.campaign_code import campaign_code, campaign_files

WORKER = {
    "apps/train.py",
    "apps/artifacts/store.py",
    "apps/base/errors.py",
    "apps/evaluation/losses.py",
    "apps/models/model.py",
    "apps/ranks/parallel.py",
    "apps/remote/calls.py",
    "apps/training/loop.py",
    "apps/trust/policy.py",
    "data/records.py",
}
CAMPAIGN = {
    "workflows/fl_round.py",
    "workflows/dataflow/engine.py",
    "workflows/planning/plan.py",
    "workflows/planning/memory/plan.py",
    "workflows/records/changes.py",
    "workflows/runtime/memoizer.py",
    "workflows/strategies/fedavg.py",
}
NEITHER = {
    "data/build_chemistry.py",
    "data/chemistry_build/splits.py",
    "site_configs/local.py",
    "site_configs/library/site.py",
    "tests/conftest.py",
    "workflows/report.py",
    "workflows/checks/preview.py",
    "workflows/console/command.py",
    "workflows/evaluation/scores.py",
    "workflows/globus/route.py",
    "workflows/records/timeline.py",
    "workflows/reporting/page.py",
    "workflows/runtime/kernel.py",
    "workflows/studies/scaling/table.py",
    "workflows/trust/schema.py",
}
PROGRAM = """
import sys
from itertools import pairwise
from pathlib import Path
from apps.base.own_packages import PACKAGES, ROOT
from apps.base.versions import _version_with, code_version
from workflows.records.campaign_code import campaign_code
for name in ["", *sys.argv[1:]]:
    if name:
        with open(name, "a") as stream:
            stream.write("# changed\\n")
    _version_with.cache_clear()
    campaign_code.cache_clear()
    print(name, code_version(), campaign_code())
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project's source to another folder."""
    root = tmp_path_factory.mktemp("copy")
    for package in (*PACKAGES, "tests"):
        shutil.copytree(
            ROOT / package, root / package, ignore=lambda _, names: {n for n in names if n == "__pycache__"}
        )
    return root


def hashes(root: Path, *edited: str) -> list[list[str]]:
    """Return the file edited before, the worker code and the campaign code of each line."""
    command = [sys.executable, "-c", PROGRAM, *edited]
    ended = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True)
    return [line.split(" ") for line in ended.stdout.splitlines()]


def test_the_hashes_do_not_depend_on_the_place(copy: Path) -> None:
    assert re.fullmatch("[0-9a-f]{16}", code_version())
    assert hashes(copy)[0] == ["", code_version(), campaign_code()]


def test_an_edit_changes_the_hashes_of_the_code_it_belongs_to(copy: Path) -> None:
    (copy / "apps" / "notes.txt").touch()
    edited = sorted(WORKER | CAMPAIGN | NEITHER)
    lines = hashes(copy, *edited)
    changed = {after[0]: (before[1] != after[1], before[2] != after[2]) for before, after in pairwise(lines)}
    assert changed == {name: (name in WORKER, name in WORKER | CAMPAIGN) for name in edited}


def test_every_room_has_a_file_among_the_edited() -> None:
    files = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    rooms = {path.parts[:2] for path in files if len(path.parts) > 2} | {(package,) for package in PACKAGES}
    covered = {Path(name).parts[:-1][:2] for name in WORKER | CAMPAIGN | NEITHER}
    assert rooms <= covered


def test_what_replay_reads_of_the_records_is_campaign_code() -> None:
    """All records that replay, and what it imports, imports; the files below only write or take options apart."""
    files, seen = [ROOT / "workflows" / "dataflow" / "replay.py", ROOT / "workflows" / "runtime" / "memoizer.py"], set()
    while files:
        path = files.pop()
        seen.add(path)
        files += [found for found in imported(path) if found not in seen]
    assert {path for path in seen if path.parent.name == "records"} <= set(campaign_files())


def imported(path: Path) -> list[Path]:
    names = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    found = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name and name.startswith("workflows.")]
    return [path for path in found if path.is_file()]


def test_other_code_is_refused_with_both_versions():
    require_same_code(code_version(), "aurora")
    with pytest.raises(VersionMismatch, match=f"site aurora: .*{code_version()}.*driver runs abc.*same commit"):
        require_same_code("abc", "aurora")


LATER = """
from pathlib import Path
import apps.site
from apps.base.errors import VersionMismatch
from apps.base.versions import code_version, require_same_code
before = code_version()
with open("apps/train.py", "a") as stream:
    stream.write("# changed\\n")
require_same_code(before, None)  # it goes on with what it has loaded
print(before)
checks = "require_same_code(before, None, started_now=True)", "import apps.train; require_same_code(before, None)"
for check in checks:
    try:
        exec(check)
    except VersionMismatch as error:
        print(error.what)
"""


def test_what_is_loaded_or_started_after_a_change_is_noticed(copy: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-B", "-c", LATER], cwd=copy, env={"PYTHONPATH": str(copy)}, capture_output=True, text=True
    )
    before, *refused = ended.stdout.splitlines()
    assert len(refused) == 2, ended.stderr
    assert all(f"the driver runs {before}" in line for line in refused)


def test_library_versions():
    found = library_versions()
    assert found["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert all(found[name] != "absent" for name in ("torch", "transformers", "safetensors"))


def reported(**changes: str) -> str:
    return json.dumps(
        {"python": platform.python_version(), "crossfed": code_version(), **library_versions(), **changes}
    )


def test_the_same_versions_have_nothing_to_say() -> None:
    for by_parsl in (True, False):
        assert compare_versions(reported(), by_parsl) == Comparison(None)


@pytest.mark.parametrize("by_parsl", [True, False])
def test_the_torch_of_a_facility_is_a_note(by_parsl: bool) -> None:
    """Aurora's module had 2.10.0a0, Frontier's guide recommends 2.10.0 for ROCm 7.1: four never have one version."""
    for torch in ("2.10.0a0+git3c3f53a", "2.10.0+rocm7.1", "2.8.0+xpu"):
        found = compare_versions(reported(torch=torch), by_parsl)
        assert found.problem is None
        assert found.ending == f"; other versions: torch {torch} (here {library_versions()['torch']})"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"torch": "2.7.1"}, "torch 2.7.1 is older than 2.8"),
        ({"torch": "absent"}, "no torch; 2.8 or later is needed"),
        ({"transformers": "4.57.1"}, "transformers 4.57.1 is older than 5.23"),
        ({"python": "3.10.13"}, "python 3.10.13 is older than 3.11"),
        ({"crossfed": "0123"}, f"its crossfed code is 0123, the driver's {code_version()}: use one commit"),
    ],
)
def test_what_cannot_work_is_a_problem(changes: dict[str, str], problem: str) -> None:
    assert compare_versions(reported(**changes), by_parsl=False).problem == problem


def test_parsl_and_the_minor_version_of_python_must_be_equal_only_where_parsl_connects_both() -> None:
    """Parsl's interchange refuses a manager with another of either; behind Globus only JSON crosses."""
    ours = library_versions()
    minor = ".".join(platform.python_version().split(".")[:2])
    other = reported(python="3.14.2", parsl="2025.01.01")
    found = compare_versions(other, by_parsl=True).problem
    assert found == (
        f"python 3.14.2; jobs that this driver submits need python {minor};"
        f" parsl 2025.01.01; jobs that this driver submits need parsl {ours['parsl']}"
    )
    elsewhere = compare_versions(other, by_parsl=False)
    assert elsewhere.problem is None and elsewhere.note == f"python 3.14.2 (here {platform.python_version()})"
    assert compare_versions(reported(python=f"{minor}.0"), by_parsl=True).problem is None


def test_the_lowest_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = "\n".join(project["dependencies"])
    asked = dict(re.findall(r"^([a-z]+)>=([\d.]+)", lines, re.MULTILINE))
    for name in LOWEST.keys() - {"python"}:
        assert asked[name] == LOWEST[name]
    assert project["requires-python"].startswith(f">={LOWEST['python']}")
