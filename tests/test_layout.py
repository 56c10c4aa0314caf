"""The order of imports: scripts and apps on top, a room imports only rooms below it; every module imports alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import PROJECT

PACKAGES = {"apps": {"apps", "data"}, "data": {"data"}, "site_configs": {"site_configs"}}  # workflows may import all
ROOMS = {  # from the ground up; the rooms of one line do not import each other
    "apps": ("base", "trust", "artifacts", "models", "ranks", "training", "evaluation remote", ""),
    "site_configs": ("library", ""),
    "workflows": (
        "console",
        "strategies",
        "planning",
        "records",
        "trust",
        "globus evaluation",
        "runtime",
        "dataflow",
        "checks",
        "reporting",
        "studies",
        "",
    ),
}
MODULES = sorted(p.relative_to(PROJECT) for top in (*PACKAGES, "workflows") for p in (PROJECT / top).rglob("*.py"))


def imported(module: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse((PROJECT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> tuple[str, str]:
    """Return the package of a dotted module name and its room; the files on top are in the room ''."""
    package, *parts = module.split(".")
    return package, parts[0] if parts and (PROJECT / package / parts[0]).is_dir() else ""


def floor_of(package: str, room: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS[package]) if room in rooms.split() or room == rooms)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_lies_below_it(module: Path) -> None:
    package, room = room_of(".".join(module.with_suffix("").parts))
    ours = {room_of(name) for name in imported(module) if name.split(".")[0] in (*PACKAGES, "workflows")}
    assert {other for other, _ in ours} <= PACKAGES.get(package, set(ROOMS) | {"data"})
    for other, below in ours:
        if other == package and package in ROOMS and below != room:
            assert floor_of(package, below) < floor_of(package, room), f"{room or 'a file on top'} imports {below}"


EXECUTING = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code"}  # modules
LOADERS = {"torch.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load"}
CALLS = {"eval", "exec", "compile", "__import__"}
OBJECTS = ("_object_list", "_object", "_pyobj")  # torch.distributed and zmq send these as pickles
READERS = {  # of what Parsl's worker pools send, without executing it
    "workflows/runtime/worker_messages.py": {"pickle"},
    "workflows/runtime/interchange.py": {"pickle"},
}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_that_is_read_can_be_executed(module: Path) -> None:
    """What comes from another process or a file is JSON, YAML's safe part, or safetensors."""
    tree = ast.parse((PROJECT / module).read_text())
    found = {name for name in imported(module) if name.split(".")[0] in EXECUTING}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS | LOADERS or called.endswith(OBJECTS):
                found.add(called)
            if any(k.arg in ("trust_remote_code", "allow_pickle") and _is_true(k.value) for k in node.keywords):
                found.add(called)
    assert found == READERS.get(str(module), set())


def _is_true(value: ast.expr) -> bool:
    return not (isinstance(value, ast.Constant) and value.value is False)


def test_every_module_imports_alone() -> None:
    """In any order and without another module's help; one fork for each, so that the libraries load once."""
    names = [".".join(m.with_suffix("").parts).removesuffix(".__init__") for m in MODULES]
    program = (
        "import os, sys, torch, transformers, peft, parsl, pandas, matplotlib\n"
        "for name in sys.argv[1:]:\n"
        "    if (child := os.fork()) == 0:\n"
        "        __import__(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]:\n"
        "        sys.exit(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *names], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
