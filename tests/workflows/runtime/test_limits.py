"""Open files: the limit is raised as far as it goes, and a campaign that needs more is refused with the number."""

from __future__ import annotations

import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from campaigns import PROJECT, environment

from apps.base.errors import UserMistake
from workflows.runtime import limits


def plan_of(batch: int, local: int = 0) -> Any:
    sites = {f"b{n}": SimpleNamespace(own_block=object()) for n in range(batch)}
    sites |= {f"l{n}": SimpleNamespace(own_block=None) for n in range(local)}
    return SimpleNamespace(sites=sites, machines=sites)


def test_forty_sites_need_more_than_the_usual_soft_limit() -> None:
    assert limits.files_needed(plan_of(40)) > 1024 > limits.files_needed(plan_of(4, 8))


def test_a_limit_that_cannot_be_raised_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (1024, 1024))
    with pytest.raises(UserMistake, match=r"^40 sites may need 1,430 open files .* allows 1,024 \(ulimit -Hn\)"):
        limits.provide_files(plan_of(40))
    assert limits.files_problem(plan_of(4)) is None


def test_the_limit_is_raised_and_workers_are_served_beyond_the_first_thousand_descriptors() -> None:
    """In a process of its own: ``select`` fails with descriptors from 1,024 on."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("this machine allows too few open files")
    program = (
        "import os, resource, socket, sys; sys.path.insert(0, 'tests/workflows/runtime')\n"
        "from test_limits import plan_of; from workflows.runtime import limits\n"
        "from workflows.runtime.fork_server import readable\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); limits.provide_files(plan_of(40))\n"
        "held = [os.open('/dev/null', os.O_RDONLY) for _ in range(1500)]\n"
        "ours, theirs = socket.socketpair(); assert ours.fileno() > 1024\n"
        "assert not readable(ours, 0.01); theirs.send(b'x'); assert readable(ours, 5)\n"
    )
    own = {**environment(), "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}"}
    ended = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=own, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
