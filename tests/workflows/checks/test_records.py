"""Checks of the records on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import nano

from apps.base.errors import UserMistake
from data.records import load_records
from workflows.checks.here import require_all
from workflows.checks.records import count_lines
from workflows.checks.space import space_text
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import Plan, make_plan

TASKS = ["forward_synthesis", "retrosynthesis"]


def plan_of(tmp_path: Path, **changes: Any) -> Plan:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(nano(**changes)))
    return make_plan(load_campaign(path), tmp_path / "runs" / "x", path)


def write_split(folder: Path, split: str, tasks: list[str], number: int) -> None:
    rows = load_records("embedded", "test", tasks, number)
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sites(**keys: Any) -> dict[str, Any]:
    return {"a": {"config": "local", "tasks": TASKS, **keys}}


def test_the_records_of_each_site_and_of_the_test_set_are_counted(tmp_path: Path) -> None:
    write_split(tmp_path / "own", "train", TASKS[:1], 3)
    rows = load_records("embedded", "test", TASKS[1:], 5)
    with (tmp_path / "own" / "train.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    plan = plan_of(
        tmp_path, sites=sites(data=str(tmp_path / "own")), evaluation={"per_task": 100}, data={"tasks": TASKS}
    )
    assert count_lines(plan) == [
        ("records", "a: 8 in split train, 3 to 5 of a task"),
        (
            "records",
            "test set: 80 in split test, 40 of a task; evaluation.per_task asks for 100: 2 tasks of 2 with fewer",
        ),
    ]


@pytest.mark.parametrize(
    ("split", "tasks", "words"),
    [
        ("dev", TASKS, "sites.a.data: no record of the task 'forward_synthesis' in split 'train'"),
        ("train", TASKS[:1], "sites.a.data: no record of the task 'retrosynthesis' in split 'train'"),
    ],
)
def test_a_site_without_records_is_refused_before_it_starts(
    tmp_path: Path, split: str, tasks: list[str], words: str
) -> None:
    write_split(tmp_path / "own", split, tasks, 3)
    plan = plan_of(tmp_path, sites=sites(data=str(tmp_path / "own")), data={"tasks": TASKS})
    for check in (count_lines, lambda plan: require_all(plan, Path("c.yaml"))):
        with pytest.raises(UserMistake, match=words):
            check(plan)


def test_the_records_of_a_site_elsewhere_are_not_looked_for(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, sites=sites(data=str(tmp_path / "none")), data={"tasks": TASKS})
    assert [text.split(":")[0] for _, text in count_lines(plan)] == ["test set"]


def test_the_disk_space_of_all_rounds_is_compared_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    plan = plan_of(tmp_path, sites=sites(), data={"tasks": TASKS}, rounds=3)
    text = space_text(plan, tmp_path / "runs" / "x")
    assert text is not None and " of models and updates a round: " in text and "free" not in text
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(0, 0, 10))
    text = space_text(plan, tmp_path / "runs" / "x")
    assert text is not None and text.endswith("of free space: enough for 0 rounds")
