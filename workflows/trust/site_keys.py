"""The public keys of the sites, and the check of the answers that they sign.

A site's key is trusted at its first use, or fixed by ``sites.NAME.public_key``. The journal has every key that was
trusted, since when and why.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.base.errors import AnswerRefused
from apps.base.files import write_text
from apps.trust.keys import key_id
from apps.trust.signed import ENROLMENT, MANIFEST, SignatureError, statement_hash
from apps.trust.site_answers import said_of
from workflows.records.journal import Journal, Record
from workflows.trust.calls import SiteCall
from workflows.trust.manifest_files import manifest_file, manifest_text

SIGNED = {"apps.train:enrol": ENROLMENT, "apps.train:local_train": MANIFEST}  # functions and what their answers are
FIRST_USE, FIXED = "first use", "sites.NAME.public_key"


class SiteKeys:
    """Checks that an answer was signed by the site that it comes from, for this campaign.

    Args:
        journal: of the run.
        campaign: its id.
        fixed: public keys that the campaign names, by site.
        run_dir: receives a file with the signature of each manifest.
    """

    def __init__(self, journal: Journal, campaign: str, fixed: Mapping[str, str], run_dir: Path) -> None:
        self.journal, self.campaign, self.fixed, self.run_dir = journal, campaign, fixed, run_dir
        self.lock = threading.Lock()
        self.known: dict[str, Record] = {record["site"]: record for record in journal.events("site_key")}
        for site, key in fixed.items():
            if site in self.known and self.known[site]["key"] != key:
                self._trust(site, key, self.known[site]["root"], FIXED)

    def check(self, call: SiteCall, result: Mapping[str, Any]) -> None:
        """Check an answer; those of other functions are not signed.

        Args:
            call: that it answers.
            result: that the site has returned, of the right form.

        Raises:
            AnswerRefused: of the site that was asked, with the remedy.
        """
        domain = SIGNED.get(call.function)
        if domain is None:
            return
        place, work = call.args[0], call.args[1]
        site, signed = place["site"], result.get("signed")
        with self.lock:
            wanted = self._wanted(site, work["root"], enrols=domain == ENROLMENT)
            try:
                statement = said_of(domain, result, wanted, self.campaign)
                if domain == MANIFEST:
                    self._require_ordered(place, result["task_id"], statement["order"])
            except SignatureError as error:
                raise self._refused(place, wanted, signed, error) from None
            assert signed is not None
            if domain == ENROLMENT and (site not in self.known or self.known[site]["key"] != signed["key"]):
                self._trust(site, signed["key"], work["root"], FIXED if site in self.fixed else FIRST_USE)
        if domain == MANIFEST:
            write_text(manifest_file(self.run_dir, site, result["task_id"]), manifest_text(signed))

    def _wanted(self, site: str, root: str, enrols: bool) -> str | None:
        """Return the key that must have signed; None: any, because the site is new, or was moved by the user."""
        if site in self.fixed:
            return self.fixed[site]
        known = self.known.get(site)
        if known is None or (enrols and known["root"] != root):
            return None if enrols else ""
        return str(known["key"])

    def _require_ordered(self, place: Mapping[str, Any], task: str, order: Any) -> None:
        """Check that a manifest answers an order of this campaign for this task, of this driver or one before."""
        sent = (r for r in self.journal.events("ordered") if r["task"] == task and r["site"] == place["site"])
        if not any(statement_hash(record["order"]) == order for record in sent):
            raise SignatureError("it answers an order that the journal does not have")

    def _trust(self, site: str, key: str, root: str, why: str) -> None:
        self.known[site] = self.journal.write("site_key", site=site, key=key, id=key_id(key), root=root, trust=why)

    def _refused(
        self, place: Mapping[str, Any], wanted: str | None, signed: Any, error: SignatureError
    ) -> AnswerRefused:
        other = signed["key"] if isinstance(signed, dict) and isinstance(signed.get("key"), str) else ""
        remedy = None
        if wanted and other and other != wanted:
            remedy = (
                f"Restore keys/site.key at the site, whose id is {key_id(wanted)}. If its owner has made a new key:"
                f" --resume with --set sites.{place['site']}.public_key=KEY, as they tell it to you"
            )
        return AnswerRefused(
            f"its answer is refused: {error}", site=place["site"], round=place["round"] or None, remedy=remedy
        )
