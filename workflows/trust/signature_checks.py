"""Verify the signatures of a run: every manifest was signed by its site and answers an order of one of its drivers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.trust.keys import key_id
from apps.trust.signed import ENROLMENT, MANIFEST, ORDER, SignatureError, read_signed, statement_hash
from apps.trust.site_answers import said_of
from workflows.records.journal import Record
from workflows.trust.findings import Finding
from workflows.trust.manifest_files import FOLDER, manifest_file, manifest_text

SHOWN = 16  # digits of a hash
SIGNED_APPS = {"enrol": ENROLMENT, "local_train": MANIFEST}


@dataclass(frozen=True)
class Trusted:
    """Whom the journal of a run trusts, and what it has said.

    Attributes:
        campaign: id of the campaign.
        drivers: public keys of its drivers.
        sites: by site the public keys that were trusted.
        orders: SHA-256 of the orders of trainings.
        heads: links of the journal.
    """

    campaign: str
    drivers: frozenset[str]
    sites: Mapping[str, Collection[str]]
    orders: frozenset[str]
    heads: frozenset[str]


def trusted(records: Sequence[Record]) -> Trusted:
    """Return whom the records of a journal trust."""
    sites: dict[str, set[str]] = {}
    for record in named(records, "site_key"):
        sites.setdefault(record["site"], set()).add(record["key"])
    opened = named(records, "campaign_opened")
    return Trusted(
        campaign=str(opened[0].get("token")) if opened else "",
        drivers=frozenset(r["key"] for r in named(records, "driver_started") if "key" in r),
        sites=sites,
        orders=frozenset(statement_hash(r["order"]) for r in named(records, "ordered")),
        heads=frozenset(r["chain"] for r in records if "chain" in r),
    )


def named(records: Sequence[Record], event: str) -> list[Record]:
    """Return the records of one kind."""
    return [record for record in records if record["event"] == event]


def signature_findings(records: Sequence[Record]) -> Iterator[Finding]:
    """Yield the records of a journal whose signatures do not hold."""
    known = trusted(records)
    for record in named(records, "ordered"):
        problem = order_problem(record, known)
        if problem:
            yield Finding(f"journal.jsonl record {record['seq']}", f"order to site {record['site']}: {problem}")
    for record in named(records, "task_done"):
        problem = answer_problem(record, known)
        if problem:
            what = f"{record['app']} of site {record['site']}, round {record['round']}"
            yield Finding(f"journal.jsonl record {record['seq']}", f"{what}: {problem}")


def order_problem(record: Record, known: Trusted) -> str | None:
    """Return what is wrong with a recorded order, or None."""
    signed = record["order"]
    try:
        statement = read_signed(ORDER, signed)
    except SignatureError as error:
        return str(error)
    if signed["key"] not in known.drivers:
        return f"signed by {key_id(signed['key'])}, which is no driver of this run"
    wanted = {"campaign": known.campaign, "site": record["site"], "round": record["round"], "task": record["task"]}
    wrong = [name for name, value in wanted.items() if statement.get(name) != value]
    return f"signed for another {wrong[0]}" if wrong else None


def answer_problem(record: Record, known: Trusted) -> str | None:
    """Return what is wrong with the signature of an answer, or None; the server's own results have none."""
    domain = SIGNED_APPS.get(str(record.get("app")))
    if domain is None:
        return None
    result, keys = record["result"], known.sites.get(str(record["site"]), ())
    try:
        statement = said_of(domain, result, None, known.campaign)
    except SignatureError as error:
        return str(error)
    if result["signed"]["key"] not in keys:
        return f"signed with the key {key_id(result['signed']['key'])}, the site's is {ids(keys)}"
    if domain == MANIFEST and statement["order"] not in known.orders:
        return f"it answers the order {statement['order'][:SHOWN]}..., which the journal does not have"
    if statement["head"] and statement["head"] not in known.heads:
        return f"the site saw the head {statement['head'][:SHOWN]}..., which the journal does not have"
    return None


def ids(keys: Collection[str]) -> str:
    """Return the ids of keys as text."""
    return ", ".join(sorted(map(key_id, keys))) or "not known"


def manifest_findings(run_dir: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Yield the files in ``manifests`` that are missing, altered, or that the journal should have."""
    wanted: dict[Path, str] = {}
    for record in named(records, "task_done"):
        if record.get("app") == "local_train" and "signed" in record["result"]:
            path = manifest_file(run_dir, record["site"], record["result"]["task_id"])
            wanted[path] = manifest_text(record["result"]["signed"])
    for path, text in sorted(wanted.items()):
        if not path.is_file():
            yield Finding(str(path.relative_to(run_dir)), "missing")
        elif (found := path.read_bytes()) != text.encode():
            digests = [hashlib.sha256(content).hexdigest() for content in (found, text.encode())]
            yield Finding(
                str(path.relative_to(run_dir)),
                f"altered: its content has the SHA-256 {digests[0]}, by the journal it should be {digests[1]}",
            )
    yield from _extra_findings(run_dir, set(wanted), trusted(records))


def _extra_findings(run_dir: Path, wanted: Collection[Path], known: Trusted) -> Iterator[Finding]:
    """Yield the manifests that the journal does not name: of a driver that ended, or the journal's end is missing."""
    for path in sorted(path for path in (run_dir / FOLDER).rglob("*") if path.is_file() and path not in wanted):
        statement: Any = _statement(path)
        place = str(path.relative_to(run_dir))
        if statement is None:
            yield Finding(place, "no manifest of a site")
        elif statement.get("order") not in known.orders or statement.get("head") not in known.heads:
            yield Finding("journal.jsonl", f"does not have what {place} answers: its end is missing, or replaced")
        else:
            yield Finding(place, "its driver ended before it recorded the training", remark=True)


def _statement(path: Path) -> Any:
    """Return what a file with a signature says, if it is one, byte for byte."""
    import json

    try:
        signed = json.loads(path.read_bytes())
        statement = read_signed(MANIFEST, signed)
        return statement if manifest_text(signed).encode() == path.read_bytes() else None
    except (ValueError, RecursionError):
        return None
