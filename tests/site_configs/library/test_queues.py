"""Tests of the queue table: accepted requests are within the limits, a refusal has the nearest accepted request."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from site_configs import aurora, frontier, perlmutter, polaris
from site_configs.library.errors import SiteConfigError
from site_configs.library.queues import (
    DAY,
    HOUR,
    QueueRefusedError,
    QueueRequest,
    choose_queue,
    format_walltime,
    longest_walltime,
    parse_walltime,
)
from site_configs.library.site import Queue

TABLES = [polaris.QUEUES, aurora.QUEUES, frontier.QUEUES, perlmutter.QUEUES]


@st.composite
def queue_tables(draw: st.DrawFn) -> list[Queue]:
    rows = []
    for number in range(draw(st.integers(1, 6))):
        nodes = sorted(draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000))))
        times = sorted(draw(st.tuples(st.integers(1, 7 * DAY), st.integers(1, 7 * DAY))))
        rows.append(
            Queue(
                f"q{number}",
                nodes[0],
                nodes[1],
                times[1],
                date(2026, 8, 19),
                "a guide",
                min_walltime_s=times[0],
                submit_to=draw(st.sampled_from([None, "route"])),
                preemptable=draw(st.booleans()),
                on_request=number > 0 and draw(st.booleans()),
            )
        )
    return rows


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TABLES) | queue_tables(), st.integers(1, 12000), st.integers(1, 9 * DAY), st.data())
def test_a_choice_fits_and_the_nearest_of_a_refusal_fits(
    queues: list[Queue], nodes: int, walltime_s: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([None, *(queue.name for queue in queues if not queue.only_interactive)]))
    try:
        chosen = choose_queue(queues, nodes, walltime_s, name)
    except QueueRefusedError as refusal:
        near = refusal.nearest
        assert (near.nodes, near.walltime_s) != (nodes, walltime_s) or near.queue != name
        assert choose_queue(queues, near.nodes, near.walltime_s, near.queue).name == near.queue
        return
    assert chosen.min_nodes <= nodes <= chosen.max_nodes
    assert chosen.min_walltime_s <= walltime_s <= chosen.max_walltime_s
    assert name in (None, chosen.name) and (name is not None or not chosen.on_request)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(TABLES) | queue_tables(), st.integers(1, 12000))
def test_the_longest_walltime_is_admitted_and_a_second_more_is_not(queues: list[Queue], nodes: int) -> None:
    kept = [queue for queue in queues if not queue.preemptable] or queues
    try:
        longest_s = longest_walltime(kept, nodes)
    except SiteConfigError:
        return
    assert choose_queue(kept, nodes, longest_s).max_walltime_s == longest_s
    with pytest.raises(QueueRefusedError):
        choose_queue(kept, nodes, longest_s + 1)


@pytest.mark.parametrize(
    ("queues", "nodes", "walltime_s", "name", "chosen"),
    [
        (polaris.QUEUES, 1, HOUR, None, "capacity"),  # queues for tests only if they are named
        (polaris.QUEUES, 1, HOUR, "debug", "debug"),
        (frontier.QUEUES, 1, HOUR, None, "batch-bin-5"),  # jobs of the shortest queue wait least
        (polaris.QUEUES, 4, 24 * HOUR, None, "capacity"),  # rather than preemptable
        (polaris.QUEUES, 8, 24 * HOUR, None, "preemptable"),
        (polaris.QUEUES, 10, 3 * HOUR, None, "small"),
        (polaris.QUEUES, 30, 5 * HOUR, "prod", "medium"),  # by the name that it is submitted to
        (polaris.QUEUES, 20, 3 * HOUR, "backfill-small", "backfill-small"),  # only if it is named
        (aurora.QUEUES, 16, 168 * HOUR, None, "capacity"),
        (aurora.QUEUES, 256, 2 * HOUR, None, "small"),
        (frontier.QUEUES, 16, 2 * HOUR, None, "batch-bin-5"),
        (frontier.QUEUES, 16, 3 * HOUR, None, "extended"),
        (frontier.QUEUES, 16, HOUR, "debug", "debug"),
        (perlmutter.QUEUES, 4, HOUR, None, "regular"),
    ],
)
def test_choices_in_the_facilities_tables(
    queues: list[Queue], nodes: int, walltime_s: int, name: str | None, chosen: str
) -> None:
    assert choose_queue(queues, nodes, walltime_s, name).name == chosen


@pytest.mark.parametrize(
    ("queues", "nodes", "longest_h"),
    [
        (polaris.QUEUES, 2, 168),
        (polaris.QUEUES, 8, 72),
        (polaris.QUEUES, 20, 3),
        (aurora.QUEUES, 16, 168),
        (frontier.QUEUES, 64, 24),
        (frontier.QUEUES, 65, 2),
        (perlmutter.QUEUES, 100, 48),
    ],
)
def test_the_longest_walltime_of_a_number_of_nodes(queues: list[Queue], nodes: int, longest_h: int) -> None:
    assert longest_walltime(queues, nodes) == longest_h * HOUR


def test_a_refusal_has_rule_date_source_and_the_nearest_request() -> None:
    with pytest.raises(QueueRefusedError) as refused:
        choose_queue(polaris.QUEUES, 4, 2 * HOUR, "debug")
    assert str(refused.value) == (
        "queue debug does not take 4 nodes for 2:00:00: debug takes 1-2 nodes for 0:05:00 to 1:00:00"
        " (ALCF Polaris guide, 2026-08-19); nearest that is taken: 4 nodes for 2:00:00 in queue capacity"
    )
    with pytest.raises(QueueRefusedError) as refused:
        choose_queue(aurora.QUEUES, 100, 2 * HOUR)
    assert refused.value.nearest == QueueRequest(256, 2 * HOUR, "small")
    with pytest.raises(
        QueueRefusedError, match="; only if it is named: queue debug-scaling .for tests, one job of a us"
    ):
        choose_queue(aurora.QUEUES, 100, HOUR)
    with pytest.raises(QueueRefusedError, match="extended takes 1-64 nodes.*OLCF Frontier guide, 2026-07-22"):
        choose_queue(frontier.QUEUES, 70, 24 * HOUR, "extended")


def test_unknown_queues_are_reported() -> None:
    with pytest.raises(SiteConfigError, match="queue: 'prodd' is unknown, did you mean 'prod'"):
        choose_queue(polaris.QUEUES, 1, HOUR, "prodd")
    with pytest.raises(SiteConfigError, match="queue: 'xyz' is unknown; known: regular, debug"):
        longest_walltime(perlmutter.QUEUES, 1, "xyz")


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 64, 256])
@pytest.mark.parametrize("walltime_s", [600, 1800, HOUR, 4 * HOUR])
@pytest.mark.parametrize("table", TABLES)
def test_no_queue_for_tests_or_terminals_is_chosen_by_itself(table: list[Queue], nodes: int, walltime_s: int) -> None:
    try:
        chosen = choose_queue(table, nodes, walltime_s)
    except QueueRefusedError as refusal:
        chosen = next(queue for queue in table if queue.name == refusal.nearest.queue)
    assert not chosen.on_request and "debug" not in chosen.name and chosen.name not in ("interactive", "preempt")


def test_a_queue_for_terminals_takes_no_block() -> None:
    with pytest.raises(SiteConfigError, match="queue: interactive takes no batch jobs: it is for salloc"):
        choose_queue(perlmutter.QUEUES, 1, HOUR, "interactive")


def test_every_rule_has_its_date_and_source() -> None:
    for queue in (queue for table in TABLES for queue in table):
        assert queue.note or not queue.on_request  # says why
        assert queue.as_of.year == 2026 and queue.source
        assert queue.min_nodes <= queue.max_nodes and queue.min_walltime_s <= queue.max_walltime_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2:00:00", 7200),
        ("168:00:00", 604800),
        ("0:30:00", 1800),
        ("1-12:00:00", 129600),
        ("90m", 5400),
        ("1d", DAY),
        ("1d 12h", 129600),
        ("1.5h", 5400),
        ("45 s", 45),
        ("7200", 7200),
        (7200, 7200),
        ("2H", 7200),
    ],
)
def test_walltimes_that_people_write(text: object, seconds: int) -> None:
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["2:30", "soon", "", "0", "0s", -5, "1:99:00", "1w", None, True])
def test_invalid_walltimes(text: object) -> None:
    with pytest.raises(ValueError, match="is not a walltime; write 2:00:00"):
        parse_walltime(text)


@given(st.integers(1, 100 * DAY))
def test_a_walltime_is_read_as_it_is_written(walltime_s: int) -> None:
    assert parse_walltime(format_walltime(walltime_s)) == walltime_s
