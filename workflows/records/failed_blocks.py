"""Failed blocks: the fields of the journal's event ``block_failed``, and the sentence that users read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["refused", "stillborn", "failed"]
REFUSED: Kind = "refused"  # the scheduler did not accept the submission
STILLBORN: Kind = "stillborn"  # the job ended before a worker of it connected
FAILED: Kind = "failed"  # the job ended as failed
OPENINGS: dict[str, str] = {
    REFUSED: "a block could not be submitted",
    STILLBORN: "a block ended before its worker began",
    FAILED: "a block has failed",
}


@dataclass(frozen=True)
class BlockFailure:
    """One failure of a site's block, as the journal has it.

    Attributes:
        kind: what failed.
        reason: the scheduler's message and the last line of the job's stderr; may be empty.
        retry_s: seconds until the next submission; None if there is none.
        meaning: the class of a refused submission in plain words; empty: unknown.
    """

    kind: Kind
    reason: str
    retry_s: float | None = None
    meaning: str = ""


def failure_text(event: Mapping[str, Any], with_retry: bool = True) -> str:
    """Return the sentence for a ``block_failed`` event; runs of older code have it in ``reason``."""
    parts = (OPENINGS.get(event.get("kind", "")), event.get("meaning"), event.get("reason"))
    text = ": ".join(str(part) for part in parts if part)
    retry_s = event.get("retry_s")
    return text if retry_s is None or not with_retry else f"{text}; next submission in {retry_s:.0f} s"
