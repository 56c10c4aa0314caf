"""Parsl memoizer that keeps the results of finished tasks in the campaign's journal.

Parsl asks a memoizer for the result of a task, by the app's name and arguments. This one reads the journal, so that
there is one record of what was done, and a resumed campaign simply runs the same dataflow again.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from parsl.dataflow.memoization import Memoizer, make_hash
from parsl.dataflow.taskrecord import TaskRecord

from apps.artifacts.store import artifact_path
from apps.base.errors import CrossfedError
from apps.base.identity import Place
from apps.transfer import forget, removable
from workflows.records.journal import Journal

logger = logging.getLogger(__name__)


class JournalMemoizer(Memoizer):
    """Parsl memoizer for apps that were made with ``cache=True``; failures are not kept.

    Args:
        journal: of the run.
        unseen: stores that this machine cannot read; files that were left there are assumed to be there still.
    """

    def __init__(self, journal: Journal, unseen: Collection[str] = ()) -> None:
        self.journal, self.unseen = journal, unseen
        self.known: dict[str, Any] = {}
        self.gone: set[tuple[str, str]] = set()  # store and SHA-256 of what was deleted on purpose
        for record in journal.events("task_done", "tidying"):
            if record["event"] == "tidying":
                self._forget(record["store"], record["removed"])
            else:
                self._know(record["key"], record["result"])

    def start(self, *, run_dir: str, config_run_dir: str) -> None:
        """Do nothing: the journal is open."""

    def close(self) -> None:
        """Do nothing: every record is on the disk."""

    def _know(self, key: str, result: Any) -> None:
        self.known[key] = result
        if isinstance(result, dict) and "artifact" in result and "store" in result:
            self.gone.discard((result["store"], result["artifact"]["sha256"]))  # it has been brought back

    def _forget(self, store: str, removed: Collection[str]) -> None:
        self.gone.update((store, sha256) for sha256 in removed)

    def _holds(self, key: str) -> bool:
        """Return True if a result is known and the files that it names are there or were deleted on purpose."""
        return key in self.known and still_there(self.known[key], self.unseen, self.gone)

    def check_memo(self, task: TaskRecord) -> Future[Any] | None:
        if not task["memoize"]:
            task["hashsum"] = None
            return None
        key = task["hashsum"] = make_hash(task)
        if not self._holds(key):
            if task["func_name"] == forget.__name__:
                self._record_deletion(*task["args"])
            return None
        done: Future[Any] = Future()
        done.set_result(self.known[key])
        return done

    def _record_deletion(self, place: Place, *files: Any) -> None:
        """Write to the journal what is going to be deleted.

        If this driver is killed meanwhile, the next one would otherwise take the artifacts for lost and have finished
        work done again.
        """
        for store, removed in removable(*files).items():
            self.journal.write("tidying", **place, store=store, removed=removed)
            self._forget(store, removed)

    def update_memo_result(self, task: TaskRecord, r: Any) -> None:
        key = task["hashsum"]
        if key is None or task["from_memo"] or self._holds(key):
            return
        self._know(key, r)
        try:
            place = task["args"][0]  # every app takes its place first
            self.journal.write(
                "task_done",
                app=task["func_name"],
                site=place["site"],
                round=place["round"],
                key=key,
                depends=_dependencies(task),
                submitted=_launched(task),
                **_times(r),
                result=r,
            )
        except CrossfedError:
            logger.exception("a finished task could not be recorded")  # the driver meets the same error and stops

    def update_memo_exception(self, task: TaskRecord, e: BaseException) -> None:
        """Do nothing: the driver, which decides what follows, writes failures to the journal."""


def still_there(result: Any, unseen: Collection[str] = (), gone: Collection[tuple[str, str]] = ()) -> bool:
    """Return True if the artifacts that a result names are still in their store, with their size.

    Their content is verified where it is used; to hash every artifact at each resume would take hours for large models.
    """
    if not isinstance(result, dict) or "artifact" not in result or "store" not in result:
        return True
    if result["store"] in unseen:
        return True
    artifacts = [result["artifact"], *filter(None, [result.get("state"), result.get("sent")])]
    store = result["store"]
    wanted = [artifact for artifact in artifacts if (store, artifact["sha256"]) not in gone]
    found = [(artifact_path(store, artifact), artifact["nbytes"]) for artifact in wanted]
    try:
        return all(path.is_file() and path.stat().st_size == nbytes for path, nbytes in found)
    except OSError:  # a storage that does not answer: who uses the file finds out
        return True


def _dependencies(task: TaskRecord) -> list[str]:
    """Return the keys of the tasks whose results this one took as arguments."""
    records = (getattr(future, "task_record", None) for future in task["depends"])
    return [record["hashsum"] for record in records if record and record["hashsum"]]


def _launched(task: TaskRecord) -> float | None:
    moment: datetime.datetime | None = task["try_time_launched"] or task["time_invoked"]
    return moment.timestamp() if moment else None


def _times(result: Any) -> dict[str, float]:
    return {k: result[k] for k in ("started", "ended") if isinstance(result, dict) and k in result}
