"""Fixtures of several tests of the data package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chemistry_archive import write_archive


@pytest.fixture
def make_archive() -> Callable[..., Path]:
    """Return a function that writes records in the layout of the published data.zip."""
    return write_archive
