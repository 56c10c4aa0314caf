"""Fixtures of the Globus route: one broker for the session, one stack for each test module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from facilities.globus.rabbit import RabbitBroker
    from facilities.globus.stack import Stack


@pytest.fixture(scope="session")
def rabbit(short_root: Path) -> Iterator[RabbitBroker]:
    """Yield a RabbitMQ node; a test that stops it must start it again."""
    from facilities.globus.rabbit import rabbit_broker

    with rabbit_broker(short_root / "mq") as broker:
        yield broker


@pytest.fixture(scope="module")
def globus(request: pytest.FixtureRequest, short_root: Path, rabbit: RabbitBroker) -> Iterator[Stack]:
    """Yield Auth, the Compute service and a broker, without agents: tests add agents by ``globus.add_agent``."""
    from facilities.globus.stack import globus_stack

    with globus_stack(short_root / request.module.__name__.rpartition(".")[2], rabbit) as stack:
        yield stack


@pytest.fixture
def globus_client(globus: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Yield the module's stack with this process as its client; limits, faults and recorded calls are reset."""
    globus.reset()
    for name, value in globus.environment().items():
        monkeypatch.setenv(name, value)
    yield globus
    globus.reset()
    end_result_watchers()


def end_result_watchers() -> None:
    """End the listening threads of the SDK: they outlive executors, and lost tasks would block this process."""
    from globus_compute_sdk.sdk.executor import _RESULT_WATCHERS

    for watcher in list(_RESULT_WATCHERS.values()):
        watcher.shutdown(wait=True, cancel_futures=True)
