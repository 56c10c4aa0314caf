"""One call to a site through its endpoint for files, outside of any campaign."""

from __future__ import annotations

import concurrent.futures
import tempfile
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError
from apps.base.identity import Place
from site_configs.library.site import Site
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.messages import pack
from workflows.globus.compute.service import ComputeService
from workflows.globus.identity import compute_client
from workflows.records.driver_key import driver_key
from workflows.records.journal import Journal
from workflows.trust.answers import checked_result
from workflows.trust.calls import SiteCall
from workflows.trust.orders import Orders

if TYPE_CHECKING:
    from globus_sdk import GlobusApp

EXAMINE = "apps.site:examine_site"
JOIN_S = 30.0  # the journal is closed after the last request
ANSWER_LIMIT_S = 300.0  # an idle endpoint takes half a minute to start a worker


def examine_site(app: GlobusApp, site: Site, campaign: str, limit_s: float = ANSWER_LIMIT_S) -> Mapping[str, Any]:
    """Return the result of ``apps.site.examine_site`` at a site.

    Raises:
        CrossfedError: no answer, or the site's error.
    """
    assert site.endpoint is not None
    target = CallTarget(site.name, site.endpoint.files)
    folders = str(site.storage_root), str(site.outgoing)
    asked = SiteCall(site.name, EXAMINE, (Place(site=site.name, round=0), *folders))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        order = Orders(journal, "", campaign, driver_key()).sign({"function": EXAMINE, "args": asked.args})
        request = pack(EXAMINE, asked.args, campaign, order)
        service = ComputeService(partial(compute_client, app), journal)
        service.start()
        try:
            call = Call(f"ask-{uuid.uuid4()}", target, EXAMINE, request, journaled=False)
            found: Mapping[str, Any] = checked_result(service.submit(call).result(limit_s), asked)
            return found
        except concurrent.futures.TimeoutError:
            raise CrossfedError(f"no answer in {limit_s:.0f} s", remedy="See the log of the agent there") from None
        finally:
            service.stop()
            if service.thread:
                service.thread.join(JOIN_S)
            journal.close()
