"""Tests of the partition of tasks and records: nothing lost, nothing twice, always the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.partition import deal_tasks, dirichlet_split
from data.records import load_records
from data.tasks import EMBEDDED_FAMILIES, EMBEDDED_TASKS, FAMILIES, Record, record

ALL = tuple(EMBEDDED_TASKS)


def make_records(tasks: list[str]) -> list[Record]:
    return [record(task, "CCO", "x", "train", 0, 0, f"{i}") for i, task in enumerate(tasks)]


def test_four_sites_get_one_family_each() -> None:
    dealt = deal_tasks({"a": None, "b": None, "c": None, "d": None}, ALL)
    assert list(dealt.values()) == [EMBEDDED_FAMILIES[family] for family in FAMILIES]
    assert list(dealt) == ["a", "b", "c", "d"]


def test_named_tasks_are_kept_and_the_rest_is_dealt() -> None:
    dealt = deal_tasks({"a": None, "b": ["name_conversion", "retrosynthesis"], "c": None}, ALL)
    assert dealt["b"] == (*EMBEDDED_FAMILIES["name_conversion"], "retrosynthesis")
    assert dealt["a"] == (*EMBEDDED_FAMILIES["property_prediction"], "forward_synthesis")
    assert dealt["c"] == EMBEDDED_FAMILIES["molecule_description"]
    assert list(dealt) == ["a", "b", "c"]


def test_two_sites_may_name_the_same_task() -> None:
    dealt = deal_tasks({"a": ["retrosynthesis"], "b": ["retrosynthesis"]}, ALL)
    assert dealt == {"a": ("retrosynthesis",), "b": ("retrosynthesis",)}


def test_more_sites_than_families_get_single_tasks() -> None:
    dealt = deal_tasks(dict.fromkeys("abcdef", None), ALL)
    assert sorted(task for tasks in dealt.values() for task in tasks) == sorted(ALL)
    assert all(2 <= len(tasks) <= 3 for tasks in dealt.values())


def test_site_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match="no task is left for the sites c"):
        deal_tasks({"a": FAMILIES[:3], "b": [FAMILIES[3]], "c": None}, ALL)


def test_unknown_task_names_the_site() -> None:
    with pytest.raises(ValueError, match="site 'b' names the task 'retrosynthesys'.*mean 'retrosynthesis'"):
        deal_tasks({"a": None, "b": ["retrosynthesys"]}, ALL)
    with pytest.raises(ValueError, match="site 'a' names the task 'retrosynthesis'"):
        deal_tasks({"a": ["retrosynthesis"]}, ["forward_synthesis"])


site_names = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@given(st.integers(1, 6), st.lists(st.sampled_from(ALL), min_size=6, unique=True))
def test_unnamed_sites_share_all_tasks_without_overlap(number: int, available: list[str]) -> None:
    sites = [f"site{i}" for i in range(number)]
    dealt = deal_tasks(dict.fromkeys(sites, None), available)
    assert sorted(task for tasks in dealt.values() for task in tasks) == sorted(available)
    assert all(dealt.values())
    assert dealt == deal_tasks(dict.fromkeys(sites, None), available[::-1])


@given(st.lists(st.sampled_from(ALL), max_size=60), site_names, st.floats(1e-4, 1e4), st.integers(0, 2**32))
def test_dirichlet_loses_nothing_and_gives_nothing_twice(
    tasks: list[str], sites: list[str], alpha: float, seed: int
) -> None:
    records = make_records(tasks)
    split = dirichlet_split(records, sites, alpha, seed)
    assert list(split) == sites
    given_ids = [int(r["sample_id"]) for rows in split.values() for r in rows]
    assert sorted(given_ids) == list(range(len(records)))
    for rows in split.values():
        order = [int(r["sample_id"]) for r in rows]
        assert order == sorted(order)
    assert split == dirichlet_split(records, sites, alpha, seed)


def test_alpha_sets_how_uneven_the_sites_are() -> None:
    records = load_records("embedded", "test")
    sites = ["a", "b", "c", "d"]

    def largest_share(alpha: float) -> float:
        split = dirichlet_split(records, sites, alpha, seed=1)
        per_task = [max(sum(r["task"] == task for r in rows) for rows in split.values()) / 40 for task in ALL]
        return sum(per_task) / len(per_task)

    assert largest_share(1e-3) > 0.95
    assert largest_share(1e4) < 0.3
    assert largest_share(1e4) < largest_share(0.5) < largest_share(1e-3)


def test_seed_and_nothing_else_changes_the_draw() -> None:
    records = load_records("embedded", "test")
    one, other = (dirichlet_split(records, ["a", "b"], 0.5, seed) for seed in (1, 2))
    assert one != other
    fewer = [r for r in records if r["task"] != "retrosynthesis"]
    expected = [r for r in one["a"] if r["task"] != "retrosynthesis"]
    assert dirichlet_split(fewer, ["a", "b"], 0.5, 1)["a"] == expected


def test_vanishing_alpha_gives_each_task_to_one_site() -> None:
    split = dirichlet_split(make_records(["retrosynthesis"] * 50), ["a", "b", "c"], 1e-300, seed=3)
    assert sorted(len(rows) for rows in split.values()) == [0, 0, 50]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be a positive number"):
        dirichlet_split([], ["a"], alpha, 0)


@pytest.mark.parametrize("sites", [[], ["a", "a"]])
def test_bad_sites_are_refused(sites: list[str]) -> None:
    with pytest.raises(ValueError, match="sites with different names"):
        dirichlet_split([], sites, 1.0, 0)
