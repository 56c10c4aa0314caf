"""What a verification of a run finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something in a run directory that is not as it was written, or that cannot be judged.

    Attributes:
        place: file, and line or record in it.
        what: is wrong, and what it should be.
        remark: True for what may be so without a change: the rest of an interrupted write.
    """

    place: str
    what: str
    remark: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"
