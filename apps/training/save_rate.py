"""Record of the time that saving takes at a site, kept in its storage over the rounds."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

from apps.base.errors import StorageError
from apps.base.files import write_json

FILE = "save_rate.json"


def record_save(root: Path, nbytes: int, seconds: float) -> None:
    """Write what a save has cost; it is an estimate for later ones, and left out if it cannot be written.

    Args:
        root: the site's storage.
        nbytes: that were gathered, hashed and written.
        seconds: that it took.
    """
    with suppress(StorageError):
        write_json(root / FILE, {"bytes": nbytes, "seconds": seconds})


def save_price_s(root: Path, nbytes: int) -> float:
    """Return the seconds that a save of so many bytes will take, by the last one at this site; 0 if there was none."""
    try:
        last = json.loads((root / FILE).read_text())
        price_s = nbytes * float(last["seconds"]) / float(last["bytes"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0.0
    return price_s if math.isfinite(price_s) and price_s > 0 else 0.0
