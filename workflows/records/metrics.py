"""``metrics.csv``: test losses of the scored models by task, and training losses of the sites, from the journal."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from apps.base.files import write_text
from workflows.console.pace import Pace
from workflows.records.csv_text import csv_text
from workflows.records.event_log import bounded_times
from workflows.records.journal import Journal, Record
from workflows.records.scores import GLOBAL, score_of

COLUMNS = (
    *("round", "model", "task", "loss", "samples", "tokens", "artifact"),
    *("standard_error", "split", "seconds", "time"),
)
TRAIN = "train"  # split of the rows about trainings; the others name the split that was scored
Row = tuple[object, ...]


class MetricsFile:
    """``metrics.csv`` of a running campaign; each record of the journal is read once.

    Args:
        path: of the file.
        journal: of the run.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path, self.journal = path, journal
        self.rows = MetricRows()
        self.records_read = 0
        self.pace = Pace()  # the whole file is written anew, which takes longer with every round

    def write_if_due(self) -> bool:
        """Write the file if that costs little against the time since it was last written; return whether it did."""
        if not self.pace.due():
            return False
        self.write()
        return True

    def write(self) -> None:
        """Write the file."""
        with self.pace.measured():
            records = self.journal.records
            new, self.records_read = records[self.records_read :], len(records)
            self.rows.read(new)
            write_text(self.path, csv_text(COLUMNS, self.rows.sorted()))


class MetricRows:
    """The rows of ``metrics.csv``, collected from the records of a journal in their order."""

    def __init__(self) -> None:
        self.split, self.opened = "test", 0.0
        self.rows: dict[tuple[int, int, str, str], Row] = {}

    def read(self, records: Iterable[Record]) -> None:
        """Read the next records; of a repeated row the last one counts."""
        for record in records:
            if record["event"] == "campaign_opened":
                self.opened = float(record.get("time") or 0.0)
                evaluation = (record.get("campaign") or {}).get("evaluation") or {}
                self.split = str(evaluation.get("split", self.split))
            elif record["event"] == "task_done" and record["app"] == "evaluate":
                self._scored(record)
            elif record["event"] == "task_done" and record["app"] == "local_train":
                self._trained(record)

    def sorted(self) -> list[Row]:
        """Return one row per round, model and task; in a round the global model, the sites, then their trainings."""
        return [row for _, row in sorted(self.rows.items())]

    def _scored(self, record: Record) -> None:
        score = score_of(record)
        seconds = _seconds(record)
        for task, entry in score.tasks.items():
            error = "" if entry.standard_error is None else f"{entry.standard_error:.6f}"
            values = (f"{entry.loss:.6f}", entry.samples, entry.tokens, score.artifact, error, self.split)
            key = score.number, int(score.model != GLOBAL), score.model, task
            self.rows[key] = (score.number, score.model, task, *values, seconds, iso_time(score.time))

    def _trained(self, record: Record) -> None:
        """Add the training of a site in a round: the loss of its last step, over all its tasks."""
        result = bounded_times(record["result"], record["time"] - self.opened)
        number, site = int(record["round"]), str(record["site"])
        loss = result.get("loss_last")
        values = ("" if loss is None else f"{loss:.6f}", result.get("samples", ""), result.get("tokens", ""))
        artifact = (result.get("artifact") or {}).get("sha256", "")
        ended = iso_time(float(result.get("ended") or record["time"]))
        row = (number, site, "", *values, artifact, "", TRAIN, f"{result.get('train_s', 0.0):.2f}", ended)
        self.rows[number, 2, site, ""] = row


def _seconds(record: Record) -> str:
    started, ended = record.get("started"), record.get("ended")
    return "" if started is None or ended is None else f"{ended - started:.2f}"


def iso_time(moment: float) -> str:
    """Return a UNIX time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
