"""Globus Transfer's REST service as the real ``globus_sdk.TransferClient`` uses it, over real folders.

Its routes are on an ``HttpService``; its state is kept over a stop and start of that one. Faults of the service itself
(5xx, 429, dropped connections) are those of ``HttpService.fault``.
"""

from __future__ import annotations

import os
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from facilities.globus.auth import TRANSFER_SERVER, Auth, Token
from facilities.globus.collection_folders import CollectionFolder, Fatal
from facilities.globus.http import Answer, HttpService, RefusalError, Request, refuse
from facilities.globus.transfer_records import FINAL, TransferFault, TransferTask, iso
from facilities.globus.transfer_tasks import TaskRunner

ID = "([0-9a-fA-F-]{36})"
BASE = "/v0.10"
CANCEL_S = 5.0  # time for which the answer to a cancel request waits for the end


class Transfer:
    """Routes of Globus Transfer and of its collections' HTTPS servers.

    Args:
        service: service of the routes.
        auth: source of tokens and consents.
        retry_s: time that a task waits after a fault.
        at_once: tasks of one identity that run at the same time; the others are Queued.

    Attributes:
        tasks: all submitted tasks, in their order.
    """

    def __init__(self, service: HttpService, auth: Auth, retry_s: float = 0.05, at_once: int = 3) -> None:
        self._service, self._auth = service, auth
        self.runner = TaskRunner(at_once, retry_s)
        self.collections: dict[str, CollectionFolder] = {}
        self.tasks: list[TransferTask] = []
        self._submissions: dict[tuple[str, str], TransferTask] = {}
        task, operation = f"{BASE}/task/{ID}", f"{BASE}/operation/endpoint/{ID}"
        for method, pattern, handler in (
            ("GET", f"{BASE}/submission_id", self._submission_id),
            ("POST", f"{BASE}/(transfer|delete)", self._submit),
            ("GET", task, lambda request, task_id: self._find(request, task_id).view()),
            ("PUT", task, self._update),
            ("POST", f"{task}/cancel", self._cancel),
            ("GET", f"{task}/event_list", self._events),
            ("GET", f"{task}/successful_transfers", self._successful),
            ("GET", f"{task}/skipped_errors", self._skipped),
            ("GET", f"{BASE}/task_list", self._task_list),
            ("GET", f"{BASE}/endpoint/{ID}", self._endpoint),
            ("GET", f"{operation}/ls", self._list),
            ("GET", f"{operation}/stat", self._stat),
            ("POST", f"{operation}/mkdir", self._mkdir),
            ("POST", f"{operation}/rename", self._rename),
            ("GET", f"/https/{ID}(/.*)", self._https_get),
            ("PUT", f"/https/{ID}(/.*)", self._https_put),
        ):
            service.route(method, pattern, handler)

    # -- what tests set up --------------------------------------------------------------------------------------

    def add_collection(self, folder: Path, name: str, **switches: Any) -> CollectionFolder:
        """Add a collection that shows a folder, which is created if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        collection = CollectionFolder(folder, name, **switches)
        self.collections[collection.id] = collection
        return collection

    def fault(self, kind: str, count: int = 1, label: str = "") -> None:
        """Add a fault of the next tasks; see ``TransferFault``."""
        self.runner.faults.append(TransferFault(kind, count, label))

    def release(self) -> None:
        """Let stalled tasks continue."""
        self.runner.release()

    # -- access checks ------------------------------------------------------------------------------------------

    def _who(self, request: Request) -> Token:
        return self._auth.token_of(request, TRANSFER_SERVER)

    def _known(self, collection_id: str) -> CollectionFolder:
        if collection_id not in self.collections:
            raise refuse(404, "EndpointNotFound", f"No such collection {collection_id}")
        return self.collections[collection_id]

    def _usable(self, request: Request, collection_id: str) -> CollectionFolder:
        """Return a collection that the identity of a request may use."""
        token, collection = self._who(request), self._known(collection_id)
        consented = self._auth.consents.has_data_access(token.subject, token.client_id, collection_id)
        if collection.data_access and not consented:
            raise _consent_required(collection_id)
        if collection.allowed is not None and token.subject not in collection.allowed:
            raise refuse(403, "EndpointPermissionDenied", "not on the access list")
        return collection

    def _reachable(self, request: Request, collection_id: str) -> CollectionFolder:
        collection = self._usable(request, collection_id)
        if not collection.online:
            raise refuse(502, "ExternalError.DirListingFailed.GCDisconnected", "the collection cannot be reached")
        if collection.expired:
            raise refuse(400, "ClientError.AuthenticationFailed.CredentialsExpired", "credentials have expired")
        return collection

    # -- file operations ----------------------------------------------------------------------------------------

    def _endpoint(self, request: Request, collection_id: str) -> Any:
        self._who(request)
        collection = self._known(collection_id)
        return {
            "DATA_TYPE": "endpoint",
            "id": collection_id,
            "display_name": collection.name,
            "high_assurance": False,
            "entity_type": collection.entity_type,
            "acl_available": True,
            "gcp_connected": collection.online if collection.personal else None,
            "https_server": f"{self._service.url}/https/{collection_id}" if collection.https else None,
        }

    def _list(self, request: Request, collection_id: str) -> Any:
        path = request.query.get("path", "/~/")
        folder = _file(self._reachable(request, collection_id), path)
        if not folder.is_dir():
            raise refuse(404, "ClientError.NotFound", f"no folder {path}")
        rows = [_entry(found) for found in sorted(folder.iterdir())]
        return {"DATA_TYPE": "file_list", "path": path, "DATA": rows, "length": len(rows), "total": len(rows)}

    def _stat(self, request: Request, collection_id: str) -> Any:
        found = _file(self._reachable(request, collection_id), request.query["path"])
        if not found.exists():
            raise refuse(404, "NotFound", "no such path")
        return _entry(found)

    def _mkdir(self, request: Request, collection_id: str) -> Any:
        folder = _file(self._reachable(request, collection_id), request.json()["path"], "w")
        if folder.exists():
            raise refuse(502, "ExternalError.MkdirFailed.Exists", "exists")
        folder.mkdir(parents=True)
        return {"DATA_TYPE": "mkdir_result", "code": "DirectoryCreated", "message": "made"}

    def _rename(self, request: Request, collection_id: str) -> Any:
        collection, wanted = self._reachable(request, collection_id), request.json()
        os.replace(_file(collection, wanted["old_path"], "w"), _file(collection, wanted["new_path"], "w"))
        return {"DATA_TYPE": "result", "code": "FileRenamed", "message": "renamed"}

    # -- HTTPS: the token is one of the collection itself -------------------------------------------------------

    def _https_file(self, request: Request, collection_id: str, path: str, right: str = "r") -> Path:
        collection = self._known(collection_id)
        if not collection.https or not collection.online:
            raise refuse(502, "Unreachable", "no answer from the collection's server")
        self._auth.token_of(request, collection_id)
        return _file(collection, path, right)

    def _https_get(self, request: Request, collection_id: str, path: str) -> Answer:
        found = self._https_file(request, collection_id, path)
        if not found.is_file():
            raise refuse(404, "NotFound", path)
        content, kind = found.read_bytes(), {"Content-Type": "application/octet-stream"}
        wanted = request.headers.get("Range")
        if not wanted:
            return Answer(content, 200, kind)
        first, last = wanted.removeprefix("bytes=").split("-")
        if int(first) >= len(content):
            return Answer(b"", 416, kind | {"Content-Range": f"bytes */{len(content)}"})
        part = content[int(first) : int(last) + 1 if last else None]
        reach = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return Answer(part, 206, kind | {"Content-Range": reach})

    def _https_put(self, request: Request, collection_id: str, path: str) -> Answer:
        target = self._https_file(request, collection_id, path, "w")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(request.body)
        return Answer(b"", 201)

    # -- tasks --------------------------------------------------------------------------------------------------

    def _submission_id(self, request: Request) -> Any:
        self._who(request)
        return {"DATA_TYPE": "submission_id", "value": str(uuid.uuid4())}

    def _submit(self, request: Request, kind: str) -> Answer:
        owner, document = self._who(request).subject, request.json()
        name = document.get("submission_id")
        if not name or not document.get("DATA"):
            raise refuse(400, "ClientError.BadRequest", "submission_id and DATA are required")
        answer = {"DATA_TYPE": f"{kind}_result", "submission_id": name}
        with self.runner.changed:
            known = self._submissions.get((owner, name))
            if known:
                return Answer(answer | {"code": "Duplicate", "task_id": known.id, "message": "was submitted before"})
            keys = ("source_endpoint", "destination_endpoint") if kind == "transfer" else ("endpoint",)
            task = TransferTask(owner, document, [self._usable(request, document[key]) for key in keys])
            self._submissions[owner, name] = task
            self.tasks.append(task)
            self.runner.start(task)
        return Answer(answer | {"code": "Accepted", "task_id": task.id, "message": "accepted"}, 202)

    def _find(self, request: Request, task_id: str) -> TransferTask:
        owner = self._who(request).subject
        for task in self.tasks:
            if task.id == task_id and task.owner == owner:
                return task
        raise refuse(404, "ClientError.NotFound", f"No task found with id {task_id}")

    def _update(self, request: Request, task_id: str) -> Any:
        task, wanted = self._find(request, task_id), request.json()
        if "deadline" in wanted:
            task.deadline = datetime.fromisoformat(wanted["deadline"]).timestamp()
        if "label" in wanted:
            task.document["label"] = wanted["label"]
        return {"DATA_TYPE": "result", "code": "Updated", "message": "updated"}

    def _cancel(self, request: Request, task_id: str) -> Any:
        task = self._find(request, task_id)
        if task.status in FINAL:
            return {"DATA_TYPE": "result", "code": "TaskComplete", "message": "it has ended"}
        task.canceled = True
        with self.runner.changed:
            self.runner.changed.notify_all()
            self.runner.changed.wait_for(lambda: task.status in FINAL, CANCEL_S)
        return {"DATA_TYPE": "result", "code": "Canceled", "message": "canceled"}

    def _events(self, request: Request, task_id: str) -> Any:
        task = self._find(request, task_id)
        offset, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 10))
        rows = task.events[::-1][offset : offset + limit]
        sizes = {"length": len(rows), "limit": limit, "offset": offset, "total": len(task.events)}
        return {"DATA_TYPE": "event_list", "DATA": rows, **sizes}

    def _successful(self, request: Request, task_id: str) -> Any:
        rows = _ended(self._find(request, task_id)).successful
        return {"DATA_TYPE": "successful_transfers", "DATA": rows, "marker": 0, "next_marker": None}

    def _skipped(self, request: Request, task_id: str) -> Any:
        rows = _ended(self._find(request, task_id)).skipped
        return {"DATA_TYPE": "skipped_errors", "DATA": rows, "next_marker": None}

    def _task_list(self, request: Request) -> Any:
        owner = self._who(request).subject
        wanted = _filtered(request.query.get("filter", ""))
        found = [task for task in self.tasks if task.owner == owner and (wanted is None or task.id in wanted)][::-1]
        offset, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 10))
        rows = [task.view() for task in found[offset : offset + limit]]
        sizes = {"length": len(rows), "limit": limit, "offset": offset, "total": len(found)}
        return {"DATA_TYPE": "task_list", "DATA": rows, **sizes}


def _filtered(text: str) -> set[str] | None:
    """Return the task ids of a filter such as ``task_id:ID,ID``; None without one."""
    fields = dict(part.partition(":")[::2] for part in text.split("/") if part)
    if fields.keys() - {"task_id"}:
        raise refuse(400, "ClientError.BadRequest", f"not a filter of this stand-in: {text}")
    return set(fields["task_id"].split(",")) if fields else None


def _ended(task: TransferTask) -> TransferTask:
    if task.status not in FINAL:
        raise refuse(400, "ClientError.BadRequest", "the task is not complete")
    return task


def _file(collection: CollectionFolder, path: str, right: str = "r") -> Path:
    try:
        return collection.file(path, right)
    except Fatal as error:
        raise refuse(403, f"EndpointError.{error.args[0]}", error.args[1]) from None


def _entry(path: Path) -> dict[str, Any]:
    known = path.lstat()
    kind = "dir" if path.is_dir() else "file"
    return {"DATA_TYPE": "file", "name": path.name, "size": known.st_size, "type": kind} | {
        "last_modified": iso(known.st_mtime),
        "permissions": f"{known.st_mode & 0o7777:04o}",
        "link_target": None,
    }


def _consent_required(collection_id: str) -> RefusalError:
    access = f"https://auth.globus.org/scopes/{collection_id}/data_access"
    scope = f"urn:globus:auth:scope:{TRANSFER_SERVER}:all[*{access}]"
    body = {"code": "ConsentRequired", "message": "Missing required data_access consent", "required_scopes": [scope]}
    return RefusalError(Answer(body, 403))
