"""Order of the tasks that wait for one worker: what other tasks wait for comes first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

LATER = ("evaluate",)  # apps whose results nothing waits for before the end of a campaign


def task_order(function: Callable[..., Any]) -> int:
    """Return the order of a call to an app, lower first; equal ones are taken as they were submitted."""
    return int(inspect.unwrap(function).__name__ in LATER)
