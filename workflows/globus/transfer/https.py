"""Read small files of a collection by HTTPS, without a transfer: a site's progress, its manifests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from site_configs.library.site import Collection
from workflows.globus.remedies import LOGIN
from workflows.globus.transfer.calls import HTTP_TIMEOUT_S, RetryingClient
from workflows.globus.transfer.errors import ConsentMissing, TransferFailed

if TYPE_CHECKING:
    import requests
    from globus_sdk.authorizers import GlobusAuthorizer

logger = logging.getLogger(__name__)
SMALL = 1 << 20  # bytes


class FileReader:
    """Reader of files at collections that have a web server.

    Args:
        caller: client of Globus Transfer, which has the address of a collection's server.
        authorizer: returns the authorizer of requests at the collection with an id.
    """

    def __init__(self, caller: RetryingClient, authorizer: Callable[[str], GlobusAuthorizer]) -> None:
        self.caller, self.authorizer = caller, authorizer
        self._servers: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def read(self, collection: Collection, path: Path, start: int = 0, limit: int = SMALL) -> bytes | None:
        """Return the content of a file from byte ``start`` on; None: no such file, no server, or no answer.

        Args:
            collection: that shows the file.
            path: of the site's file system.
            start: first byte wanted.
            limit: at most so many bytes; a longer file is cut off.

        Raises:
            ConsentMissing: the identity may not read there by HTTPS.
            TransferFailed: the server refuses.
        """
        server = self.server(collection)
        if server is None:
            return None
        import requests

        url = server.rstrip("/") + quote(collection.path_of(path))
        try:
            return self._read(collection, url, start, limit)
        except requests.RequestException as error:
            logger.info("%s does not answer: %s", server, type(error).__name__)
            return None

    def server(self, collection: Collection) -> str | None:
        """Return the address of a collection's web server; requested once."""
        with self._lock:
            if collection.id not in self._servers:
                facts = self.caller(lambda client: client.get_endpoint(collection.id))
                self._servers[collection.id] = facts.get("https_server")
            return self._servers[collection.id]

    def _read(self, collection: Collection, url: str, start: int, limit: int) -> bytes | None:
        authorizer = self.authorizer(collection.id)
        with self._get(authorizer, url, start, limit) as answer:
            if answer.status_code != 401:
                return _content(answer, collection, start, limit)
        if not authorizer.handle_missing_authorization():
            raise _not_authorized(collection)
        with self._get(authorizer, url, start, limit) as answer:
            return _content(answer, collection, start, limit)

    def _get(self, authorizer: GlobusAuthorizer, url: str, start: int, limit: int) -> requests.Response:
        import requests

        headers = {"Range": f"bytes={start}-{start + limit - 1}"}
        token = authorizer.get_authorization_header()
        if token:
            headers["Authorization"] = token
        # a redirection would lead to a login page, or the token to another host
        return requests.get(url, headers=headers, stream=True, timeout=HTTP_TIMEOUT_S, allow_redirects=False)


def _content(answer: requests.Response, collection: Collection, start: int, limit: int) -> bytes | None:
    """Return the requested part of an answer; the limit also holds for a server that ignores ranges."""
    status = answer.status_code
    if status == 404 or status >= 500:
        return None
    if status == 416:
        return b""
    if status in (301, 302, 303, 307, 401, 403):
        raise _not_authorized(collection)
    if status not in (200, 206):
        raise TransferFailed(f"collection {collection.id} answers HTTP {status}", file=answer.url)
    skip, content = (start if status == 200 else 0), bytearray()
    for piece in answer.iter_content(1 << 16):
        content += piece
        if len(content) >= skip + limit:
            break
    return bytes(content[skip : skip + limit])


def _not_authorized(collection: Collection) -> ConsentMissing:
    return ConsentMissing(
        f"collection {collection.id} does not let this identity read by HTTPS",
        remedy=f"Agree once: {LOGIN} --collection {collection.id}",
    )
