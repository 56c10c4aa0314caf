"""The orders of a driver: its requests to sites, signed; those for trainings are in the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.base.identity import Place
from apps.training.task import task_identity
from apps.trust.orders import sign_order
from apps.trust.signed import Signed
from apps.trust.site_request import ARGUMENTS
from workflows.records.journal import Journal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TRAIN = "apps.train:local_train"


class Orders:
    """Signs the requests of a driver.

    Args:
        journal: of the run; each order names its head.
        campaign: id of the campaign.
        name: of the campaign, for people and policies.
        key: of the driver.
    """

    def __init__(self, journal: Journal, campaign: str, name: str, key: Ed25519PrivateKey) -> None:
        self.journal, self.campaign, self.name, self.key = journal, campaign, name, key

    def sign(self, call: Mapping[str, Any]) -> Signed | None:
        """Return the order of a request; None for the server's own work.

        Args:
            call: ``function``, ``args`` and ``kwargs``, plain values; the site receives them with this campaign's name.

        Raises:
            StorageError: the journal cannot be written.
        """
        if call["function"] not in ARGUMENTS:
            return None
        trains = call["function"] == TRAIN
        task = task_identity(*call["args"]) if trains else ""
        named = {"campaign": self.campaign, "task": task, "head": self.journal.head}
        signed = sign_order(self.key, {**call, "campaign": self.name}, now_s=time.time(), **named)
        if trains:
            place: Place = call["args"][0]
            self.journal.write("ordered", **place, task=task, order=signed)
        return signed
