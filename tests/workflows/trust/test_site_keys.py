"""The signatures of sites: only their own answer to this request counts, under the key that the journal has."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from written_run import ENROL, SHARD, TRAIN, WORK, rewritten, signed_answer, write_run

from apps.base.errors import AnswerRefused, UpdateRefused
from apps.base.identity import Place
from apps.trust.keys import key_id, public_key
from apps.trust.signed import ENROLMENT, MANIFEST, Signed, sign
from workflows.records.journal import Journal
from workflows.trust.calls import SiteCall
from workflows.trust.edge import Edge
from workflows.trust.orders import Orders
from workflows.trust.site_keys import SiteKeys
from workflows.trust.verification import findings_of

DRIVER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
VALUES = {"artifact": {"sha256": "7" * 64, "nbytes": 10, "kind": "update"}, "steps_done": 5, "loss_last": 2.5}


@dataclass
class Run:
    """A driver and its sites; ``edge`` is another one after each ``restart``."""

    folder: Path
    campaign: str = "c" * 32
    fixed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        self.journal = Journal(self.folder / "journal.jsonl")
        self.journal.write("driver_started", key=public_key(DRIVER))
        self.keys = SiteKeys(self.journal, self.campaign, self.fixed, self.folder)
        self.edge = Edge(Orders(self.journal, self.campaign, "demo", DRIVER), self.keys)

    def root(self, site: str) -> Path:
        return self.folder.parent / "storage" / self.folder.name / site

    def enrol(self, site: str = "aurora") -> dict[str, Any]:
        return signed_answer(self.edge, ENROL, self.folder, Place(site=site, round=0), SHARD)

    def train(self, site: str = "aurora", number: int = 1) -> dict[str, Any]:
        return signed_answer(self.edge, TRAIN, self.folder, Place(site=site, round=number), VALUES)

    def check(self, answer: dict[str, Any], function: str = TRAIN, site: str = "aurora", number: int = 1) -> None:
        work = {**WORK, "root": str(self.root(site))}
        self.keys.check(SiteCall(site, function, (Place(site=site, round=number), work)), answer)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    made.enrol()
    return made


def test_the_key_of_the_first_answer_is_in_the_journal_and_the_signatures_are_in_the_run(run: Run) -> None:
    [record] = run.journal.events("site_key")
    answer = run.train()
    assert (record["key"], record["trust"]) == (answer["signed"]["key"], "first use")
    assert record["id"] == key_id(record["key"])
    path = run.folder / "manifests" / "aurora" / f"{answer['task_id']}.json"
    assert json.loads(path.read_text()) == answer["signed"]
    [order] = run.journal.events("ordered")
    assert json.loads(order["order"]["statement"])["name"] == "demo"


def test_a_statement_has_what_the_site_answers_for(run: Run) -> None:
    said = json.loads(run.train()["signed"]["statement"])
    before, after = said, json.loads(run.train(number=2)["signed"]["statement"])
    assert said["values"]["artifact"] == VALUES["artifact"] and said["values"]["steps_done"] == 5
    assert "loss_last" not in said["values"], "a policy may withhold it later"
    assert after["head"] != before["head"], "of the driver's journal at that time"


def changed(answer: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(answer), **values}


def test_no_changed_value_counts(run: Run) -> None:
    answer = run.train()
    run.check(answer)
    run.check(changed(answer, store="/moved", reused=True, loss_last=None))
    stranger = sign(MANIFEST, json.loads(answer["signed"]["statement"]), DRIVER)
    enrolled = sign(ENROLMENT, json.loads(answer["signed"]["statement"]), DRIVER)
    unsigned = {name: value for name, value in answer.items() if name != "signed"}
    for wrong, problem in (
        (changed(answer, steps_done=6), "its steps_done is not the signed one"),
        (changed(answer, artifact={**VALUES["artifact"], "sha256": "8" * 64}), "its artifact is not the signed one"),
        (changed(answer, task_id="e" * 32), "its task_id is not the signed one"),
        (changed(answer, more=1), "its more is not the signed one"),
        (unsigned, "not signed"),
        (changed(answer, signed={**answer["signed"], "signature": "0" * 128}), "the signature does not fit"),
        (changed(answer, signed=stranger), "signed with another key"),
        (changed(answer, signed=enrolled), "signed with another key"),
    ):
        with pytest.raises(UpdateRefused, match=f"site aurora, round 1: its answer is refused: {problem}"):
            run.check(wrong)


def test_what_a_site_has_said_elsewhere_or_earlier_is_not_said_again(run: Run, tmp_path: Path) -> None:
    """A manifest of another round, of another campaign with the same key, and of another site."""
    first, second = run.train(number=1), run.train(number=2)
    with pytest.raises(AnswerRefused, match="its task_id is not the signed one"):
        run.check(changed(first, task_id=second["task_id"]), number=2)
    with pytest.raises(AnswerRefused, match="its ended is not the signed one"):
        run.check(changed(second, signed=first["signed"], task_id=first["task_id"]), number=2)
    run.enrol("frontier")
    with pytest.raises(AnswerRefused, match="site frontier.*signed with another key"):
        run.check(first, site="frontier")
    other_order = json.loads(first["signed"]["statement"]) | {"order": second["signed"]["statement"][:64]}
    key = Ed25519PrivateKey.from_private_bytes((run.root("aurora") / "keys" / "site.key").read_bytes())
    with pytest.raises(AnswerRefused, match="it answers an order that the journal does not have"):
        run.check(changed(first, signed=sign(MANIFEST, other_order, key)))
    later = Run(tmp_path / "run", campaign="d" * 32)
    with pytest.raises(AnswerRefused, match="signed for another campaign"):
        later.check(first)


def test_a_site_that_was_never_enrolled_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(AnswerRefused, match="signed with another key"):
        Run(tmp_path / "run").train()


def test_another_key_at_a_resume_is_refused_until_the_user_says_it(run: Run) -> None:
    key = run.root("aurora") / "keys" / "site.key"
    [known] = run.journal.events("site_key")
    run.restart()
    run.enrol()
    assert len(list(run.journal.events("site_key"))) == 1
    key.unlink()
    run.restart()
    with pytest.raises(AnswerRefused, match=rf"another key\. Restore .*{known['id']}.*sites\.aurora\.public_key=KEY"):
        run.enrol()
    made = public_key(Ed25519PrivateKey.from_private_bytes(key.read_bytes()))
    run.fixed = {"aurora": made}
    run.restart()
    run.enrol()
    run.train()
    assert [(r["key"], r["trust"]) for r in run.journal.events("site_key")] == [
        (known["key"], "first use"),
        (made, "sites.NAME.public_key"),
    ]


def test_a_fixed_key_is_required_from_the_first_answer(tmp_path: Path) -> None:
    with pytest.raises(AnswerRefused, match="signed with another key"):
        Run(tmp_path / "run", fixed={"aurora": "a" * 64}).enrol()


# -- verification ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("signed") / "run", rounds=2, nbytes=50)


def first(records: list[dict[str, Any]], event: str, **values: Any) -> dict[str, Any]:
    return next(r for r in records if r["event"] == event and all(r.get(k) == v for k, v in values.items()))


def more_steps(records: list[dict[str, Any]]) -> None:
    first(records, "task_done", app="local_train")["result"]["samples"] = 9_000


def other_site(records: list[dict[str, Any]]) -> None:
    first(records, "task_done", app="local_train", site="aurora")["site"] = "frontier"


def stolen_order(records: list[dict[str, Any]]) -> None:
    first(records, "ordered")["order"] = sign("crossfed/order/v1", {"round": 1}, DRIVER)


def order_of_another_round(records: list[dict[str, Any]]) -> None:
    first(records, "ordered", round=1)["order"] = first(records, "ordered", round=2)["order"]


def without_signature(records: list[dict[str, Any]]) -> None:
    del first(records, "task_done", app="enrol")["result"]["signed"]


def without_order(records: list[dict[str, Any]]) -> None:
    records.remove(first(records, "ordered", round=2))


def odd(records: list[dict[str, Any]]) -> None:
    first(records, "task_done", app="local_train")["result"] = None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (more_steps, "local_train of site aurora, round 1: its samples is not the signed one"),
        (other_site, "local_train of site frontier, round 1: signed with the key"),
        (stolen_order, "order to site aurora: signed by"),
        (order_of_another_round, "order to site aurora: signed for another round"),
        (without_signature, "enrol of site aurora, round 0: not signed"),
        (without_order, "which the journal does not have"),
        (odd, "has a record of an unknown form"),
    ],
)
def test_a_journal_written_anew_with_a_good_chain_is_found_by_the_signatures(
    change: Any, problem: str, written: Path, tmp_path: Path
) -> None:
    copied = rewritten(written, tmp_path / "copy", change)
    assert any(problem in str(finding) for finding in findings_of(copied) if not finding.remark)


def test_manifests_are_covered_and_witness_the_end_of_the_journal(written: Path, tmp_path: Path) -> None:
    cut, path = tmp_path / "cut", "journal.jsonl"
    shutil.copytree(written, cut)
    lines = (cut / path).read_bytes().splitlines(keepends=True)
    kept = next(number for number, line in enumerate(lines) if b'"event":"ordered"' in line and b'"round":2' in line)
    (cut / path).write_bytes(b"".join(lines[:kept]))
    found = [str(finding) for finding in findings_of(cut) if not finding.remark]
    assert any("its end is missing, or replaced" in text for text in found)
    files = sorted((written / "manifests").rglob("*.json"))
    assert len(files) == 4
    signed: Signed = json.loads(files[0].read_text())
    (cut / files[0].relative_to(written)).write_text(json.dumps(signed))
    assert any("manifests/" in str(finding) and "altered" in str(finding) for finding in findings_of(cut))
