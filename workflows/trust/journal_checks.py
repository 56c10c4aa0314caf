"""Verify a journal: every line is as it was written, none is missing between two others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from workflows.records.journal import CHAIN, DIGITS, END, START, link_of, links
from workflows.trust.findings import Finding

SHOWN = 16  # digits of a hash


def journal_findings(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the lines of a journal; a last line that a crash left unfinished is a remark.

    Args:
        path: of the journal.
    """
    head, bare = START, 0
    for number, found, expected in links(path):
        head = found or expected
        if found is None:
            bare += 1
        elif found != expected:
            yield Finding(
                f"{path.name} line {number}",
                f"altered, or lines before it are missing: it names the link {found[:SHOWN]}..., its bytes after the"
                f" line before give {expected[:SHOWN]}...",
            )
    if bare:
        yield Finding(path.name, f"{bare} of its lines have no link: altered, or of an older release")
    yield from _end_findings(path, head)


def _end_findings(path: Path, head: str) -> Iterator[Finding]:
    """Yield what is wrong after the last end of line."""
    content = path.read_bytes()
    rest = content[content.rfind(b"\n") + 1 :]
    if not rest:
        return
    place = rest.find(CHAIN)
    whole = place + len(CHAIN) + DIGITS + len(END)
    if place >= 0 and len(rest) >= whole:
        found, expected = link_of(head, rest[:whole])
        if len(rest) > whole or found != expected:
            yield Finding(f"{path.name}, its end", f"altered: byte {len(content) - len(rest) + whole} must end a line")
            return
    yield Finding(f"{path.name}, its end", "an interrupted write; the next driver removes it", remark=True)


def head_findings(path: Path, heads: Collection[str]) -> Iterator[Finding]:
    """Yield the heads, as somebody has noted them earlier, that the journal does not contain: its end was cut off.

    Args:
        path: of the journal.
        heads: or their first digits.
    """
    known = [START, *(found for _, found, _ in links(path) if found)]
    for head in heads:
        if not any(link.startswith(head) for link in known):
            yield Finding(path.name, f"does not contain the head {head[:SHOWN]}...: its end is missing, or replaced")
