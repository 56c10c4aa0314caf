"""Verify a run directory: which of its bytes are not as the run has written them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from apps.base.errors import UserMistake
from workflows.console.units import plural
from workflows.records.journal import START, Record, links, read_lines
from workflows.trust.file_checks import (
    Progress,
    artifact_findings,
    campaign_findings,
    metrics_findings,
    model_findings,
)
from workflows.trust.findings import Finding
from workflows.trust.journal_checks import head_findings, journal_findings
from workflows.trust.signature_checks import manifest_findings, signature_findings

JOURNAL = "journal.jsonl"
UNCOVERED = "report.html, figures/, model/README.md, evaluation.csv, environment.json, logs/, parsl/ and sites/"


def findings_of(run_dir: Path, heads: Collection[str] = (), progress: Progress = lambda _: None) -> Iterator[Finding]:
    """Yield everything in a run directory that is not as it was written.

    Args:
        run_dir: of a run, finished or not; no driver may be at work.
        heads: of the journal, that somebody has noted earlier.
        progress: is told the bytes of each large file that was read.

    Raises:
        UserMistake: it is no run directory.
    """
    journal = run_dir / JOURNAL
    if not journal.is_file():
        raise UserMistake(f"{run_dir} is no run directory: it has no {JOURNAL}")
    altered = list(journal_findings(journal))
    yield from altered
    yield from head_findings(journal, heads)
    records = written_records(journal)
    if not all(finding.remark for finding in altered):
        yield Finding(
            JOURNAL,
            "signatures, manifests, campaign.yaml and metrics.csv cannot be compared with an altered journal",
            remark=True,
        )
    else:
        yield from _signatures(run_dir, records)
        yield from campaign_findings(run_dir / "campaign.yaml", records)
        yield from metrics_findings(run_dir / "metrics.csv", records)
    yield from artifact_findings(run_dir / "artifacts", records, progress)
    yield from model_findings(run_dir / "model", records, progress)


def _signatures(run_dir: Path, records: list[Record]) -> Iterator[Finding]:
    try:
        yield from signature_findings(records)
        yield from manifest_findings(run_dir, records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # written by somebody who knows the chain
        yield Finding(JOURNAL, f"has a record of an unknown form: {type(error).__name__} {error}")


def written_records(journal: Path) -> list[Record]:
    """Return the records of a journal whose lines are as they were written."""
    found = [
        r if link == expected else None
        for (_, r), (_, link, expected) in zip(read_lines(journal), links(journal), strict=True)
    ]
    return [record for record in found if record is not None]


def summary(run_dir: Path) -> str:
    """Return the length and the head of a run's journal, for people."""
    heads = [found or expected for _, found, expected in links(run_dir / JOURNAL)]
    return f"Journal of {plural(len(heads), 'record')}, head {(heads or [START])[-1]}."
