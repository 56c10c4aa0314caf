"""Tasks of the Transfer stand-in: they really copy files, chunk by chunk and in place, with injected faults."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facilities.globus.collection_folders import Fatal, Transient
from facilities.globus.transfer_records import TransferFault, TransferTask

CHUNK = 1 << 16
ENDS = ("source_path", "destination_path")
SYNC_LEVELS: dict[int, Callable[[Path, Path], bool]] = {
    0: lambda _a, _b: True,
    1: lambda a, b: a.stat().st_size == b.stat().st_size,
    2: lambda a, b: a.stat().st_size == b.stat().st_size and a.stat().st_mtime <= b.stat().st_mtime,
    3: lambda a, b: a.read_bytes() == b.read_bytes(),
}


class TaskRunner:
    """Runner of tasks in threads, a number of one owner at once and the others in their order.

    Attributes:
        at_once: tasks of one owner that run at once.
        retry_s: time that Globus waits after a fault before it continues.
    """

    def __init__(self, at_once: int, retry_s: float) -> None:
        self.at_once, self.retry_s = at_once, retry_s
        self.faults: list[TransferFault] = []
        self.changed = threading.Condition(threading.RLock())
        self._waiting: list[TransferTask] = []
        self._running: list[TransferTask] = []

    def start(self, task: TransferTask) -> None:
        with self.changed:
            self._waiting.append(task)
        threading.Thread(target=self._run, args=(task,), daemon=True, name=f"transfer {task.id}").start()

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        with self.changed:
            self.changed.notify_all()

    def release(self) -> None:
        """Let stalled tasks continue."""
        with self.changed:
            self.faults = [fault for fault in self.faults if fault.kind != "stall"]
            self.changed.notify_all()

    def _run(self, task: TransferTask) -> None:
        self._await_turn(task)
        try:
            self._work(task)
            task.end("SUCCEEDED")
        except Fatal as error:
            task.end("FAILED", {"code": error.args[0], "description": error.args[1]})
        except Exception as error:  # noqa: BLE001 - an error here must appear as a failed task, not as a hang
            task.end("FAILED", {"code": "INTERNAL", "description": repr(error)})
        finally:
            with self.changed:
                self._running.remove(task)
                self.changed.notify_all()

    def _await_turn(self, task: TransferTask) -> None:
        def has_turn() -> bool:
            mine = [other for other in self._running if other.owner == task.owner]
            first = next(other for other in self._waiting if other.owner == task.owner)
            return (len(mine) < self.at_once and first is task) or task.canceled or time.time() > task.deadline

        with self.changed:
            while not has_turn():
                self.changed.wait(0.05)
            self._waiting.remove(task)
            self._running.append(task)
            self.changed.notify_all()
        task.nice_status = "OK"
        task.tell("STARTED", "started")

    def _work(self, task: TransferTask) -> None:
        steps: list[Callable[[], None]] | None = None
        while True:
            try:
                if self._takes(task, "fail"):
                    raise Fatal("FATAL_INJECTED", "a fault of the test")
                self._check(task)
                steps = self._steps(task) if steps is None else steps
                while steps:
                    steps[0]()
                    steps.pop(0)
                return
            except Transient as error:
                task.fault(*error.args)
                with self.changed:
                    self.changed.wait(self.retry_s)

    def _steps(self, task: TransferTask) -> list[Callable[[], None]]:
        steps: list[Callable[[], None]] = []
        for item in task.document["DATA"]:
            steps += self._deletion(task, item) if "path" in item else self._copies(task, item)
        task.files = len(steps)
        return steps

    def _deletion(self, task: TransferTask, item: dict[str, Any]) -> list[Callable[[], None]]:
        path = task.collections[0].file(item["path"], "w")

        def delete() -> None:
            if not path.exists() and not task.document.get("ignore_missing"):
                raise Transient("FILE_NOT_FOUND", item["path"])
            if path.is_dir() and task.document.get("recursive"):
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            task.files_transferred += 1

        return [delete]

    def _copies(self, task: TransferTask, item: dict[str, Any]) -> list[Callable[[], None]]:
        source, target = (
            collection.file(item[key], right)
            for collection, key, right in zip(task.collections, ENDS, "rw", strict=True)
        )
        if not (item.get("recursive") or source.is_dir()):
            return [lambda: self._copy(task, item, source, target)]
        files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        return [lambda part=part: self._copy(task, item, source / part, target / part) for part in files]  # type: ignore[misc]

    def _copy(self, task: TransferTask, item: dict[str, Any], source: Path, target: Path) -> None:
        if not source.is_file():
            self._skip(task, item)
            return
        sync_level = task.document.get("sync_level")
        if sync_level is not None and target.is_file() and SYNC_LEVELS[sync_level](source, target):
            task.files_skipped += 1
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        self._pour(task, source, target)
        if task.document.get("verify_checksum") and source.read_bytes() != target.read_bytes():
            raise Transient("VERIFY_CHECKSUM", f"checksum mismatch on {item['destination_path']}")
        self._check_digest(item, target)
        if self._takes(task, "damage"):
            content = bytearray(target.read_bytes())
            content[-1] ^= 1
            target.write_bytes(content)
        task.files_transferred += 1
        paths = {key: item[key] for key in ("source_path", "destination_path")}
        task.successful.append({"DATA_TYPE": "successful_transfer", **paths})

    @staticmethod
    def _skip(task: TransferTask, item: dict[str, Any]) -> None:
        if not task.document.get("skip_source_errors"):
            raise Transient("FILE_NOT_FOUND", f"no file {item['source_path']}")
        path = item["source_path"]
        task.skipped.append({"error_code": "FILE_NOT_FOUND", "source_path": path, "is_directory": False})

    @staticmethod
    def _check_digest(item: dict[str, Any], target: Path) -> None:
        expected, kind = item.get("external_checksum"), item.get("checksum_algorithm") or "MD5"
        if expected and hashlib.new(kind.lower(), target.read_bytes()).hexdigest() != expected.lower():
            raise Fatal("EXTERNAL_CHECKSUM_MISMATCH", item["destination_path"])

    def _pour(self, task: TransferTask, source: Path, target: Path) -> None:
        """Copy in place, as Globus does: a reader meanwhile sees a part of the file."""
        size = source.stat().st_size
        with open(source, "rb") as reader, open(target, "wb", buffering=0) as writer:
            while chunk := reader.read(CHUNK):
                self._check(task)
                if self._takes(task, "drop"):
                    raise Transient("CONNECTION_RESET", "a fault of the test")
                if reader.tell() > size // 2 and self._takes(task, "partial"):
                    raise Fatal("ENDPOINT_ERROR", f"ended in the middle of {target.name}")
                if self._takes(task, "corrupt"):
                    chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
                for collection in task.collections:
                    collection.pace.wait(len(chunk), collection.bandwidth)
                writer.write(chunk)
                task.bytes_transferred += len(chunk)

    def _check(self, task: TransferTask) -> None:
        """Between chunks, wait for and raise the conditions that keep a task from continuing."""
        while True:
            if task.canceled:
                raise Fatal("CANCELED", "canceled on request")
            if time.time() > task.deadline:
                raise Fatal("EXPIRED", "the deadline has passed")
            for collection in task.collections:
                collection.check_reachable()
            if any(collection.expired for collection in task.collections):
                self._suspend(task)
            elif self._has(task, "stall"):
                task.fault("TIMEOUT", "no answer from the data channel")
                with self.changed:
                    self.changed.wait(self.retry_s)
            else:
                task.nice_status, task.nice_status_details = "OK", None
                return

    def _suspend(self, task: TransferTask) -> None:
        task.nice_status, task.nice_status_details = "CREDENTIALS_EXPIRED", "credentials have expired"
        task.tell("CREDENTIALS_EXPIRED", "credentials have expired; the task is suspended", is_error=True)
        task.status = "INACTIVE"
        with self.changed:
            while any(c.expired for c in task.collections) and not task.canceled and time.time() < task.deadline:
                self.changed.wait(0.05)
        task.status = "ACTIVE"

    def _has(self, task: TransferTask, kind: str) -> bool:
        return any(fault.kind == kind and fault.count > 0 and fault.label in task.label for fault in self.faults)

    def _takes(self, task: TransferTask, kind: str) -> bool:
        with self.changed:
            for fault in self.faults:
                if fault.kind == kind and fault.count > 0 and fault.label in task.label:
                    fault.count -= 1
                    return True
        return False
