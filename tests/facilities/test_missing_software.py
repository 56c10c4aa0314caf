"""Tests without the software that they need: skipped, or failed where they are required."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def set_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the hook that is called before each test, on a machine without Slurm."""
    plugins = request.config.pluginmanager.get_plugins()
    (rules,) = (plugin for plugin in plugins if hasattr(plugin, "missing_for_slurm"))
    monkeypatch.setattr(rules, "missing_for_slurm", lambda: ["sbatch"])
    return rules.pytest_runtest_setup


def with_marker(wanted: str) -> Any:
    return SimpleNamespace(get_closest_marker=lambda name: name == wanted or None)


def test_a_test_that_needs_it_is_skipped(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSFED_REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"needs Slurm .*: sbatch; run .ci/packages.sh as root"):
        set_up(with_marker("slurm"))


def test_where_it_is_required_the_test_fails(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFED_REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="not installed: sbatch"):
        set_up(with_marker("slurm"))


def test_other_tests_run(set_up: Any) -> None:
    set_up(with_marker("campaign"))
