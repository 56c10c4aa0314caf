"""The check of what sites say: whatever an answer holds, it is a result that fits the call or that site's own error."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_site import PARALLEL, TRAINING, model_spec

from apps.base.errors import AnswerRefused, CrossfedError, LossNotFinite, SiteMistake, TaskError, UpdateRefused
from apps.training.task import task_identity
from data.foreign import LONGEST
from workflows.trust.answers import read_answer
from workflows.trust.calls import SiteCall, answered, call_of
from workflows.trust.schema import CHECKS

PLACE = {"site": "aurora", "round": 1}
SHA, OTHER = "5" * 64, "6" * 64
TASKS = ["chemical_reaction", "molecule_description"]
WORK: dict[str, Any] = {
    "root": "/site",
    "model": model_spec(),
    "data": {"source": "embedded", "tasks": TASKS, "per_task": 20, "max_tokens": 64, "prompt": "", "loss_on": "all"},
    "seed": 1,
    "threads": 1,
    "parallel": PARALLEL,
    "code_version": "abc",
}
SIGNED = {"statement": "{}", "key": "a" * 64, "signature": "b" * 128}  # verified by test_site_keys.py
ENROLLED: dict[str, Any] = {
    "shard_sha256": SHA,
    "samples": 30,
    "per_task": {"chemical_reaction": 20, "molecule_description": 10},
    "cut": {"chemical_reaction": {"question": 2, "answer": 0}},
    "libraries": {"torch": "2.13.0"},
    "host": "node1",
    "free_bytes": 10**13,
    "started": 1.7e9,
    "ended": 1.7e9,
    "signed": SIGNED,
}
REQUEST = {"training": TRAINING, "optimizer_from": None, "left_over_from": None, "attempt": 1}
BASE = {"artifact": {"sha256": SHA, "nbytes": 4000, "kind": "model"}, "store": "/site/artifacts"}
MANIFEST: dict[str, Any] = {
    "task_id": task_identity(PLACE, WORK, REQUEST, BASE, ENROLLED),  # type: ignore[arg-type]
    "code_version": "abc",
    **PLACE,
    "base": SHA,
    "artifact": {"sha256": OTHER, "nbytes": 4000, "kind": "update"},
    "store": "/site/artifacts",
    "steps_done": 2,
    "steps_asked": 2,
    "samples": 4,
    "shard_samples": 30,
    "shard_cut": ENROLLED["cut"],
    "tokens": 100,
    "loss_first": 3.0,
    "loss_last": 2.0,
    **dict.fromkeys(("train_s", "load_s", "verify_s", "data_s", "save_s", "update_s", "tokens_per_s"), 1.0),
    "attempts": 1,
    "padding": 0.25,
    "optimizer": "fresh",
    "started": 1.7e9,
    "ended": 1.7e9,
    "reused": False,
    "signed": SIGNED,
}
STATUS: dict[str, Any] = {
    "progress": {
        **{"task_id": "a" * 32, "round": 1, "phase": "training", "step": 1, "steps": 2},
        **{"loss": None, "tokens_per_s": 1.0, "time": 1.7e9},
    },
    **{"claims": ["a" * 32], "checkpoint": "checkpoints/a/step-1", "finished": None, "time": 1.7e9},
}
ENROL = SiteCall("aurora", "apps.train:enrol", (PLACE, WORK))
TRAIN = SiteCall("aurora", "apps.train:local_train", (PLACE, WORK, REQUEST, BASE, ENROLLED))
LOOK = SiteCall("aurora", "apps.site:site_status", (PLACE, "/site"))
EXAMINE = SiteCall("aurora", "apps.site:examine_site", (PLACE, "/site", "/site/out"))
BLOCK = SiteCall("aurora", "apps.site:block_started", (PLACE,))
GOOD: list[tuple[SiteCall, dict[str, Any]]] = [
    (ENROL, ENROLLED),
    (TRAIN, MANIFEST),
    (LOOK, STATUS),
    (EXAMINE, {"versions": {"python": "3.11.7"}, "storage": None}),
    (BLOCK, {"block": "0", "left_s": None, "host": "node1", "started": 1.7e9, "ended": 1.7e9}),
]


def read(result: Any, call: SiteCall) -> Any:
    return read_answer(json.dumps({"result": result}), call)


@pytest.mark.parametrize(("call", "result"), GOOD, ids=lambda value: getattr(value, "function", ""))
def test_an_honest_answer_passes_unchanged(call: SiteCall, result: dict[str, Any]) -> None:
    assert read(result, call) == result
    assert call.function in CHECKS


@pytest.mark.parametrize(("call", "result"), GOOD, ids=lambda value: getattr(value, "function", ""))
def test_every_field_is_required_and_no_other_is_taken(call: SiteCall, result: dict[str, Any]) -> None:
    for changed in (*({k: v for k, v in result.items() if k != key} for key in result), {**result, "more": 1}):
        with pytest.raises(AnswerRefused, match=r"site aurora.*its answer is refused"):
            read(changed, call)


ODD = (10**25, -17, 10**400, True, "3", float("nan"), float("inf"), -0.5, None, [], {}, "x" * 5000, "\x1b]0;OWNED\x07")


@pytest.mark.parametrize("value", ODD, ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize(("call", "result"), GOOD, ids=lambda value: getattr(value, "function", ""))
def test_an_odd_value_is_refused_or_harmless(call: SiteCall, result: dict[str, Any], value: Any) -> None:
    """Only what a field may hold passes: None where it is optional, text in a path that is never opened."""
    passed = set()
    for key in result:
        try:
            read({**result, key: value}, call)
            passed.add(key)
        except AnswerRefused as error:
            assert len(str(error)) < 400 and str(error).isprintable()
    harmless = {
        "None": {"progress", "checkpoint", "finished", "storage", "left_s", "loss_first", "loss_last"},
        "True": {"reused"},
        "'3'": {"store", "host", "checkpoint", "storage", "block"},
        "-0.5": {"loss_first", "loss_last", "left_s"},
        "-17": {"loss_first", "loss_last", "left_s"},
        "[]": {"claims"},
        "{}": {"cut", "libraries", "versions"},
    }
    assert passed <= harmless.get(ascii(value)[:20], set())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task_id": "b" * 32}, "task_id"),
        ({"site": "frontier"}, "site: 'frontier', this request has 'aurora'"),
        ({"round": 2}, "round: 2, this request has 1"),
        ({"base": OTHER}, "base"),
        ({"code_version": "other"}, "code_version"),
        ({"steps_done": 3}, "steps_done: 3, 2 were asked"),
        ({"steps_asked": 1}, "steps_asked"),
        ({"shard_samples": 31}, "shard_samples"),
        ({"artifact": {"sha256": "../../home/models/model", "nbytes": 1, "kind": "update"}}, "artifact.sha256"),
        ({"artifact": {"sha256": OTHER, "nbytes": 80 << 20, "kind": "update"}}, "artifact.nbytes"),
        ({"artifact": {"sha256": OTHER, "nbytes": 4, "kind": "model"}}, "artifact.kind"),
        ({"started": 9e10}, "in the future"),
    ],
)
def test_a_manifest_answers_its_own_request_alone(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(AnswerRefused, match=r"site aurora, round 1: .*refused") as caught:
        read({**MANIFEST, **changes}, TRAIN)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"samples": 31}, "not the sum"),
        ({"samples": 10**10, "per_task": {TASKS[0]: 10**10}}, "the campaign takes 20"),
        ({"per_task": {"other": 30}}, "none of the site's tasks"),
        ({"cut": {"other": {"question": 1}}}, "not among per_task"),
        ({"cut": {TASKS[0]: {"title": 1}}}, "other parts"),
        ({"shard_sha256": SHA.upper().replace("5", "A")}, "shard_sha256"),
    ],
)
def test_an_enrolment_fits_the_campaign(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(AnswerRefused) as caught:
        read({**ENROLLED, **changes}, ENROL)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(b"bytes", None, 5, "", "x", "[]", "{}", '"result"', "null", '{"result"', "\ud800"),
        '{"result": 1, "result": 2}',
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"result": ' + "[" * 40 + "]" * 40 + "}",
        '{"result": ' + "9" * 5000 + "}",
        " " * (LONGEST + 1),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_cannot_be_read_is_the_site_s_failure(text: Any) -> None:
    with pytest.raises(AnswerRefused, match="site aurora: its answer is refused"):
        read_answer(text, BLOCK)


def test_brackets_within_texts_do_not_count() -> None:
    found = {"versions": {"python": '["\\' * 40}, "storage": None}
    assert read(found, EXAMINE) == found


def test_a_site_s_own_error_keeps_its_kind() -> None:
    text = json.dumps({"error": {"kind": "LossNotFinite", "what": "diverged", "round": 1}})
    with pytest.raises(LossNotFinite, match="site aurora, round 1: diverged"):
        read_answer(text, TRAIN)


def test_a_site_speaks_of_itself_alone() -> None:
    """Neither another site nor another round is blamed, and a mistake of its own ends no other."""
    record = {
        "kind": "UserMistake",
        "what": "no records",
        "site": "frontier",
        "round": 7,
        "remedy": "Name another file",
    }
    with pytest.raises(SiteMistake) as training:
        read_answer(json.dumps({"error": record}), TRAIN)
    assert str(training.value) == "site aurora, round 1: no records. Name another file"
    with pytest.raises(SiteMistake) as enrolment:
        read_answer(json.dumps({"error": record}), ENROL)
    assert (enrolment.value.site, enrolment.value.round) == ("aurora", None)


def test_a_site_cannot_end_a_campaign_by_what_only_the_server_can_find() -> None:
    with pytest.raises(TaskError, match="site aurora, round 1: not finite"):
        read_answer(json.dumps({"error": {"kind": "ModelNotFinite", "what": "not finite"}}), TRAIN)


def test_the_server_s_own_work_tells_whose_update_is_at_fault() -> None:
    record = {"kind": "UpdateRefused", "what": "not finite", "site": "frontier", "round": 7}
    with pytest.raises(UpdateRefused, match="site frontier, round 7: not finite"):
        read_answer(json.dumps({"error": record}), SiteCall("server", "apps.server:aggregate", (PLACE,)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({key for _, result in GOOD for key in result})


@settings(max_examples=150)
@given(st.sampled_from(GOOD), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_json_is_a_checked_result_or_an_error(case: tuple[SiteCall, dict[str, Any]], value: Any) -> None:
    call, good = case
    for result in (value, {**good, **value} if isinstance(value, dict) else value):
        try:
            read(result, call)
        except CrossfedError as error:
            assert error.site == "aurora"
        else:
            assert set(result) == set(good)


def test_the_future_of_a_call_ends_whatever_the_answer_is() -> None:
    def odd(_answer: Any) -> Any:
        raise RecursionError

    for answer in (json.dumps({"result": 5}), "[" * 10_000, None):
        first: Future[Any] = Future()
        checked = answered(first, lambda text: read_answer(text, ENROL))
        first.set_result(answer)
        assert isinstance(checked.exception(0), AnswerRefused)
        assert isinstance(answered(first, odd).exception(0), RecursionError)


def test_arguments_that_are_not_plain_are_refused() -> None:
    with pytest.raises(CrossfedError, match="not plain"):
        call_of("aurora", abs, (object(),), {}).text()


@pytest.mark.parametrize(("call", "result"), GOOD, ids=lambda value: getattr(value, "function", ""))
def test_no_answer_has_times_of_the_future_or_ends_before_it_started(call: SiteCall, result: dict[str, Any]) -> None:
    for name in result.keys() & {"started", "ended", "time"}:
        with pytest.raises(AnswerRefused, match=f"{name}: in the future"):
            read(result | {name: 1e11}, call)
    if "started" in result:
        with pytest.raises(AnswerRefused, match="started: after it has ended"):
            read(result | {"started": result["ended"] + 3600}, call)
