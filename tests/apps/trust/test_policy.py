"""The policy of a site: forbidden requests are refused at the site, each by the right rule, and honest ones pass."""

from __future__ import annotations

import copy
import json
import os
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from site_policy import write_policy
from training_site import Site, model_spec

from apps.base.error_records import error_from
from apps.base.errors import PolicyRefused
from apps.remote.admission import POLICY_VARIABLE
from apps.remote.calls import FUNCTIONS, answer_text
from apps.training.task import task_identity
from apps.trust import site_request
from apps.trust.policy import OWN, filled
from apps.trust.policy_file import READERS, account_policy, read_policy
from apps.trust.request_log import LARGEST, log_request
from apps.trust.usage import read_usage
from workflows.globus.compute.messages import without_sites_own

TRAIN, ENROL = "apps.train:local_train", "apps.train:enrol"
PRINT = "f" * 64
STRICT: dict[str, Any] = {
    "python": sys.executable,
    "data": ["embedded"],
    "models": ["tiny"],
    "learning_files": [],
    "launch": [],
    "device": "cpu",
    "max_model_bytes": 1_000_000,
    "max_update_bytes": 1_000_000,
    "max_steps_per_request": 10,
    "max_steps": 15,
    "max_rounds": 2,
    "max_node_hours": 1.5,
    "metrics": [],
    "methods": ["full"],
    "campaigns": ["demo"],
    "not_after": date.today() + timedelta(days=2),
}


class Door:
    """A site with a policy; calls come through its entrance as text."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.private = Site(folder), folder
        self.policy = self.rules()
        monkeypatch.setenv(POLICY_VARIABLE, str(self.policy))

    def rules(self, **rules: Any) -> Path:
        return write_policy(self.private / "policy", self.private, **{**STRICT, **rules})

    def call(self, function: str = TRAIN, **changes: Any) -> dict[str, Any]:
        """The honest request; ``changes`` are paths in it such as ``work.model.source``."""
        names = site_request.ARGUMENTS[function]
        honest = dict(zip(site_request.ARGUMENTS[TRAIN], self.site.arguments(), strict=True))
        values = copy.deepcopy({**honest, "root": str(self.site.root), "out": self.site.outgoing})
        request = {"function": function, "campaign": "demo", "values": values}
        for path, value in changes.items():
            *parts, last = path.split("__")
            place: Any = values if parts or last in values else request
            for part in parts:
                place = place[part]
            place[last] = value
        values = request.pop("values")
        return {**request, "args": [values[name] for name in names]}

    def ask(self, request: Any) -> Any:
        """Return the result; raise the error that a driver would see."""
        found = json.loads(answer_text(json.dumps(request), FUNCTIONS))
        if "error" in found:
            raise error_from(found["error"])
        return found["result"]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.private / "requests.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture
def door(made: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    return Door(made, monkeypatch)


FORBIDDEN: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [  # rule, function, changed request, changed policy
    ("python", ENROL, {"python": "/bin/sh"}, {}),
    ("python", ENROL, {}, {"python": "/another/python"}),
    ("environment", ENROL, {"environment": {"PYTHONPATH": "/exchange/in"}}, {}),
    ("launch", TRAIN, {"work__parallel__launch": ["sh", "-c", "id"]}, {}),
    ("root", ENROL, {"work__root": "/etc"}, {}),
    ("root", "apps.site:site_status", {"root": "{root}/../elsewhere"}, {}),
    ("root", "apps.site:examine_site", {"root": "{link}"}, {}),
    ("exchange", "apps.site:examine_site", {"out": "{link}"}, {}),
    *(("root", ENROL, {"work__root": f"{{private}}/{name}"}, {}) for name in (*OWN, "usage/a", "requests.jsonl/a")),
    ("root", "apps.site:examine_site", {"root": "{private}/usage"}, {}),
    ("exchange", "apps.site:examine_site", {"out": "{private}/requests.1.jsonl"}, {}),
    ("exchange", TRAIN, {"work__out": "{private}/usage"}, {}),
    ("exchange", TRAIN, {"base__store": "{private}/keys"}, {}),
    ("exchange", TRAIN, {"work__out": "/etc"}, {}),
    ("exchange", TRAIN, {"work__out": "{root}/shard"}, {"exchange": "/exchange"}),
    ("exchange", TRAIN, {"base__store": "/etc"}, {}),
    ("exchange", TRAIN, {"base__store": "{link}"}, {}),
    ("data", ENROL, {"work__data__source": "/home/somebody"}, {}),
    ("data", ENROL, {"work__data__source": ""}, {"data": ["embedded", "/records"]}),
    ("models", ENROL, {"work__model__source": "/models/other"}, {}),
    ("models", TRAIN, {}, {"models": [{"source": "tiny", "fingerprint": PRINT}]}),
    ("methods", ENROL, {"work__model__adapter": model_spec("ffa")["adapter"]}, {}),
    ("device", TRAIN, {"request__training__device": "cuda"}, {}),
    ("max_steps_per_request", TRAIN, {"request__training__steps": 11}, {}),
    ("max_steps_per_request", TRAIN, {"request__training__accumulate": 10**9}, {}),
    ("max_steps", TRAIN, {"request__training__steps": 9}, {"max_steps": 8}),
    ("max_steps", TRAIN, {"request__training__accumulate": 5}, {"max_steps": 8}),
    ("max_rounds", TRAIN, {}, {"max_rounds": 0}),
    ("max_node_hours", TRAIN, {}, {"max_node_hours": 0}),
    ("max_model_bytes", TRAIN, {"base__artifact__nbytes": 1_000_001}, {}),
    ("metrics", ENROL, {"metrics": ["losses"]}, {}),
    ("campaigns", ENROL, {"campaign": "other"}, {}),
    ("campaigns", ENROL, {"campaign": ""}, {}),
    ("drivers", ENROL, {}, {"drivers": ["0123456789abcdef"]}),
    ("not_after", ENROL, {}, {"not_after": date(2026, 1, 1)}),
    ("function", ENROL, {"function": "os:system"}, {}),
    ("function", ENROL, {"function": ["os:system"]}, {}),
    ("learning_files", TRAIN, {"request__learning_files": ["0" * 64]}, {"learning_files": ["0" * 64]}),
    ("learning_files", TRAIN, {"request__learning_files": []}, {"learning_files": "any"}),
    ("request", TRAIN, {"request__training__batch_size": 10**9}, {}),
    ("request", TRAIN, {"work__parallel__nodes": 0}, {}),
    ("request", TRAIN, {"work__out": ""}, {}),
    ("request", TRAIN, {"base__store": "in"}, {}),
    ("request", ENROL, {"work__root": "\ud800"}, {}),
    *(("request", TRAIN, {"campaign": value}, {"campaigns": "any"}) for value in ([], {}, False, 0, None, "a\n")),
    ("request", TRAIN, {"request": []}, {}),
    ("request", ENROL, {"shell": "id"}, {}),
    ("request", ENROL, {"kwargs": {"root": "/"}}, {}),
    ("request", ENROL, {"work__sitecustomize": "x"}, {}),
    ("request", ENROL, {"work__data__tasks": ["../../secrets"]}, {}),
    ("request", ENROL, {"campaign": "../x"}, {}),
    ("request", TRAIN, {"base__artifact__sha256": "../" * 20 + "etc"}, {}),
    ("request", TRAIN, {"request__optimizer_from": "../../x"}, {}),
    ("request", TRAIN, {"shard__shard_sha256": "../../x"}, {}),
    ("request", TRAIN, {"request__training__steps": 2.0}, {}),
    ("request", TRAIN, {"request__training__steps": -1}, {}),
    ("request", TRAIN, {"work": []}, {}),
    ("request", TRAIN, {"work__parallel__interface": "lo; id"}, {}),
]


@pytest.mark.parametrize(("rule", "function", "changes", "rules"), FORBIDDEN)
def test_forbidden_requests_are_refused_by_their_rule(
    rule: str, function: str, changes: dict[str, Any], rules: dict[str, Any], door: Door, tmp_path: Path
) -> None:
    door.rules(**rules)
    (link := door.site.root / "link").unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    places = {"{root}": str(door.site.root), "{link}": str(link), "{private}": str(door.private)}
    for key, value in changes.items():
        if isinstance(value, str):
            for name, place in places.items():
                value = value.replace(name, place)
            changes = {**changes, key: value}
    before = sorted(door.site.root.rglob("*"))
    request = door.call(function, **{k: v for k, v in changes.items() if k != "function"})
    request["function"] = changes.get("function", function)
    with pytest.raises(PolicyRefused) as refused:
        door.ask(request)
    error = refused.value
    assert error.rule == rule and error.asked and error.allowed
    assert "operator of the site" in str(error) and rule in str(error)
    assert door.log()[-1]["answer"] == f"refused by {rule}"
    assert sorted(door.site.root.rglob("*")) == before and not list(tmp_path.iterdir())  # nothing was read or made


def test_honest_requests_pass_and_what_they_leave_open_is_the_sites_own(door: Door) -> None:
    open_work = {"work__data__source": "", "work__model__source": ""}
    enrolled = door.ask(door.call(ENROL, **open_work))
    assert enrolled["shard_sha256"] == door.site.shard["shard_sha256"]
    assert door.ask(door.call("apps.site:site_status"))["claims"] == []
    assert door.ask(door.call("apps.site:examine_site"))["storage"] is None
    manifest = door.ask(door.call(**open_work))
    assert (manifest["loss_first"], manifest["loss_last"], manifest["steps_done"]) == (None, None, 2)  # metrics: []
    status = door.ask(door.call("apps.site:site_status"))
    assert status["finished"] == manifest["task_id"] and status["progress"]["loss"] is None
    again = door.ask(door.call())  # named or not, it is the same task
    assert again["task_id"] == manifest["task_id"] and again["reused"]
    usage = read_usage(door.private)
    assert (usage.steps, usage.trainings) == (2, 1) and usage.node_s > 0
    with pytest.raises(PolicyRefused) as refused:  # the totals are over all requests
        door.rules(max_steps=3)
        door.ask(door.call(place__round=2))
    assert (refused.value.rule, refused.value.asked, refused.value.allowed) == ("max_steps", "4", "3")
    assert read_usage(door.private) == usage
    door.rules(max_steps=2, max_node_hours=0)
    assert door.ask(door.call())["reused"]  # asking for a result again costs nothing
    assert door.ask(door.call(base__fetched=[manifest["artifact"]["sha256"]]))["reused"]  # and does not delete it
    line = door.log()[-1]
    assert line.items() >= {"answer": "ok", "campaign": "demo", "round": 1, "steps": 2, "function": TRAIN}.items()
    assert line["task"] == manifest["task_id"] and (door.private / "requests.jsonl").stat().st_mode & 0o777 == 0o600
    door.site.update(manifest).unlink()
    with pytest.raises(PolicyRefused, match="max_steps: asked 4, allowed 2"):
        door.ask(door.call())  # it would train again


def test_an_update_that_is_too_large_does_not_leave(door: Door) -> None:
    door.rules(max_update_bytes=100, max_steps="any", max_rounds="any")
    with pytest.raises(PolicyRefused, match="max_update_bytes"):
        door.ask(door.call(place__round=3))
    manifests = [json.loads(path.read_text()) for path in door.site.root.rglob("manifests/*.json")]
    (made,) = [manifest for manifest in manifests if manifest["round"] == 3]
    assert not (Path(made["store"]) / f"{made['artifact']['sha256']}.safetensors").exists()


# -- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_stepz": 1}, "unknown key max_stepz"),
        ({"device": ...}, "the key device is missing"),
        ({"policy": 2}, "does not begin with policy: 1"),
        ({"root": "any"}, "root: 'any' is no whole path"),
        ({"root": "/a/../b"}, "no whole path without"),
        ({"max_steps": True}, "max_steps: True is no whole number"),
        ({"max_steps": "10"}, "is no whole number"),
        ({"max_node_hours": float("inf")}, "no number of hours"),
        ({"data": "/records"}, "data: '/records' is no list"),
        ({"metrics": ["gradients"]}, "known are losses"),
        ({"not_after": "soon"}, "no date"),
        ({"drivers": [1234567890123456]}, "put it in quotes"),
        ({"exchange": "/data/x", "root": "/data/x/private"}, "overlap"),
        ({"exchange": "/data/x", "data": ["/data"]}, "overlap"),
        ({"models": [{"source": "tiny", "print": 1}]}, "an entry has source and fingerprint"),
    ],
)
def test_a_policy_is_read_strictly(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match=reason) as refused:
        read_policy(write_policy(tmp_path, tmp_path / "root", **change))
    assert refused.value.rule == "policy"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("policy: 1\npolicy: 1\n", "set twice"),
        ("policy: &a 1\n", "aliases and tags"),
        ("policy: !!python/name:os.system 1\n", "aliases and tags"),
        ("[" * 5000, "no YAML"),
        ("5", "does not begin"),
    ],
)
def test_no_trick_of_yaml(text: str, reason: str, tmp_path: Path) -> None:
    path = write_policy(tmp_path, tmp_path)
    path.write_text(text)
    with pytest.raises(PolicyRefused, match=reason):
        read_policy(path)


def test_a_policy_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "p", tmp_path)
    assert read_policy(path).root == str(tmp_path)
    for place, mode in ((path, 0o620), (path, 0o602), (path.parent, 0o770)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(PolicyRefused, match="others may write it"):
            read_policy(path)
        place.chmod(before)
    (link := tmp_path / "p" / "link.yaml").symlink_to(path)
    with pytest.raises(PolicyRefused, match="cannot be read"):
        read_policy(link)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_policy_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "p", tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(PolicyRefused, match="it belongs to another user"):
        read_policy(path)


def test_without_a_policy_an_endpoint_does_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLICY_VARIABLE)
    with pytest.raises(PolicyRefused, match="the endpoint names no policy"):
        door.ask(door.call(ENROL))
    monkeypatch.setenv(POLICY_VARIABLE, "/no/such/crossfed-site.yaml")
    with pytest.raises(PolicyRefused, match="no policy file"):
        door.ask(door.call(ENROL))


def test_a_driver_of_the_same_account_is_held_to_the_accounts_own_policy(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it guards against mistakes; without the file nothing is restricted, and it covers the site's work only."""
    place = tmp_path / ".crossfed" / "site.yaml"
    monkeypatch.setattr("apps.remote.admission.account_policy", lambda: place)
    request = json.dumps({**door.call(), "kwargs": {}})
    assert "result" in json.loads(answer_text(request))
    write_policy(place.parent, door.private, max_steps_per_request=1).rename(place)
    assert json.loads(answer_text(request))["error"]["rule"] == "max_steps_per_request"
    own = {"function": "apps.base.versions:code_version", "args": [], "kwargs": {}}
    assert "result" in json.loads(answer_text(json.dumps(own)))
    place.chmod(0o666)
    assert json.loads(answer_text(request))["error"]["rule"] == "policy"


def test_the_place_of_the_accounts_policy_is_no_matter_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = account_policy()
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv(POLICY_VARIABLE, "/elsewhere/site.yaml")
    assert account_policy() == before


def test_a_request_leaves_out_what_is_the_sites_own_and_is_the_same_task_there(door: Door) -> None:
    """Driver and site must name the task alike: the driver looks for it in the site's files."""
    arguments = door.site.arguments()
    sent = without_sites_own(arguments, ())
    work = sent[1]
    assert (work["data"]["source"], work["model"]["source"], work["parallel"]["launch"]) == ("", "", [])
    named = without_sites_own(arguments, ("data",))[1]
    assert (named["data"]["source"], named["model"]["source"]) == ("embedded", "")
    policy = read_policy(door.policy)
    there = filled(policy, site_request.site_request({"function": TRAIN, "args": sent, "campaign": "demo"}))
    assert there.work is not None and there.work["model"] == arguments[1]["model"]
    assert task_identity(*there.arguments.values()) == task_identity(*arguments)


def test_the_policy_is_read_again_for_every_request(door: Door) -> None:
    door.ask(door.call(ENROL))
    door.rules(not_after=date(2026, 1, 1))
    with pytest.raises(PolicyRefused, match="not_after"):
        door.ask(door.call(ENROL))


# -- the log ----------------------------------------------------------------------------------------------------


def test_the_log_is_bounded_and_holds_nothing_of_a_strange_request(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_bytes(b"x" * LARGEST)
    request = site_request.SiteRequest("f", {"place": {"round": "x" * 999}, "request": {"training": {"steps": {}}}})
    log_request(tmp_path, request, None, "refused by request")
    line = (tmp_path / "requests.jsonl").read_text()
    assert len(line) < 400 and (tmp_path / "requests.1.jsonl").stat().st_size == LARGEST


def test_the_keys_of_a_policy_are_those_that_are_documented() -> None:
    assert set(READERS) == set(STRICT) | {"root", "exchange", "drivers"}
