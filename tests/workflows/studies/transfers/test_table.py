"""The table of a transfer study, the line through its times, what smaller files save, and the pictures."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from apps.base.errors import UserMistake
from workflows.reporting.figure_style import save
from workflows.studies.tables import csv_of
from workflows.studies.transfers import figures, savings
from workflows.studies.transfers.line import LinearFit, fit, lines_of
from workflows.studies.transfers.models import model_of
from workflows.studies.transfers.rows import RETURN, SEND, TransferRow, ends, read_rows
from workflows.studies.transfers.table import add, line_table, line_texts, rate_text, repair, speed_table, speeds

ROW = TransferRow("polaris", "globus", SEND, "opt-125m", 125_239_296, 250_501_136, 2.5, 1.25, 100.0, 0, 1)
LINE = LinearFit(1.5, 400e6, 0.1, (350e6, 500e6), 10**6, 10**9)


def trip(row: TransferRow) -> list[TransferRow]:
    return [row, replace(row, direction=RETURN)]


def timed(site: str, latency_s: float, bandwidth: float, *sizes: int) -> list[TransferRow]:
    """Trips of three repeats each, of a site that keeps to a line but for a few percent."""
    rows = []
    for size in sizes:
        for repeat, noise in enumerate((0.97, 1.0, 1.04), start=1):
            seconds = (latency_s + size / bandwidth) * noise
            made = TransferRow(
                site, "globus", SEND, f"m{size}", size // 2, size, seconds, 0.0, size / seconds / 1e6, 0, repeat
            )
            rows += trip(made)
    return rows


def printed(table) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


# --- the file ---------------------------------------------------------------------------------------------------


rows = st.builds(
    TransferRow,
    site=st.sampled_from(["polaris", "aurora"]),
    carrier=st.just("globus"),
    direction=st.just(SEND),
    model=st.sampled_from(["opt-125m", "mine"]),
    parameters=st.integers(1, 10**11),
    nbytes=st.integers(1, 10**11),
    seconds=st.integers(1, 9999).map(float),
    queued_s=st.just(0.25),
    rate_mb_s=st.integers(1, 999).map(float),
    faults=st.integers(0, 9),
    repeat=st.integers(1, 9),
)


@given(st.lists(rows, max_size=5, unique_by=lambda row: row.key))
def test_rows_come_back_as_they_were_added(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("table") / "transfers.csv"
    repair(path)
    for row in found:
        add(path, trip(row))
    assert read_rows(path) == [half for row in found for half in trip(row)]
    assert repair(path) == read_rows(path)


def test_the_columns_are_those_that_are_promised():
    assert csv_of(TransferRow, trip(ROW)).splitlines() == [
        "site,carrier,direction,model,parameters,nbytes,seconds,queued_s,rate_mb_s,faults,repeat",
        "polaris,globus,send,opt-125m,125239296,250501136,2.5,1.25,100,0,1",
        "polaris,globus,return,opt-125m,125239296,250501136,2.5,1.25,100,0,1",
    ]


@pytest.mark.parametrize("cut", range(1, 136, 9))
def test_what_a_killed_study_has_half_written_does_not_count(tmp_path, cut):
    path = tmp_path / "transfers.csv"
    repair(path)
    add(path, trip(ROW))
    whole = path.read_bytes()
    add(path, trip(replace(ROW, repeat=2)))
    path.write_bytes(path.read_bytes()[:-cut])
    assert repair(path) == trip(ROW)
    assert path.read_bytes() == whole


def test_no_table_has_no_rows_and_another_file_is_refused(tmp_path):
    assert read_rows(tmp_path / "transfers.csv") == []
    (tmp_path / "transfers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserMistake, match="not a table of a transfer study"):
        read_rows(tmp_path / "transfers.csv")


def test_speeds_are_medians_with_the_least_and_the_most():
    found = [replace(ROW, repeat=n, rate_mb_s=rate) for n, rate in enumerate((90.0, 130.0, 100.0), start=1)]
    large = replace(ROW, model="opt-1.3b", nbytes=2 * 10**9, rate_mb_s=300.0)
    made = speeds([large, *found, replace(ROW, site="aurora"), replace(ROW, direction=RETURN)], "polaris", SEND)
    assert list(made) == [("opt-125m", 250_501_136), ("opt-1.3b", 2 * 10**9)]
    first = made["opt-125m", 250_501_136]
    assert (first.middle, first.low, first.high, first.repeats) == (100.0, 90.0, 130.0, 3)


def test_the_tables_on_the_terminal():
    found = [*trip(ROW), *trip(replace(ROW, site="aurora", rate_mb_s=55.5))]
    assert ends(found) == [("polaris", SEND), ("polaris", RETURN), ("aurora", SEND), ("aurora", RETURN)]
    told = printed(speed_table(found))
    assert "polaris" in told and "251 MB" in told and "55.5 to 55.5" in told
    told = printed(line_table({("polaris", SEND): LINE, ("aurora", SEND): None}))
    assert "1.5 s" in told and "350 to 500" in told and "–" in told
    assert line_texts(replace(LINE, latency_error_s=None, bandwidth_range=None)) == ("1.5 s", "–", "400", "–")
    assert line_texts(replace(LINE, bandwidth_range=(350e6, math.inf)))[3] == "350 or more"


def test_a_transfer_that_took_no_time_has_no_speed(tmp_path):
    """Its row is kept; no table, no word and no picture makes a number of it."""
    short = replace(ROW, seconds=0.0, rate_mb_s=math.nan)
    table = tmp_path / "transfers.csv"
    repair(table)
    add(table, trip(short))
    assert table.read_text().splitlines()[1].endswith(",0,1.25,,0,1")
    (there, back), timed = read_rows(table), replace(ROW, repeat=2)
    assert math.isnan(there.rate_mb_s) and [row.key for row in repair(table)] == [there.key, back.key]
    assert rate_text(there.rate_mb_s) == "too short to measure" and rate_text(timed.rate_mb_s) == "100 MB/s"
    assert speeds([there], "polaris", SEND) == {}
    assert speeds([there, timed], "polaris", SEND)["opt-125m", ROW.nbytes].repeats == 1
    told = printed(speed_table([there, back]))
    assert "too short to measure" in told and "nan" not in told and "251 MB" in told
    for found in ([there, back], [there, back, *trip(timed)]):
        figures.speed_figure(found, lines_of(found))
        bars = figures.mean_figure(found).axes[0].patches
        assert [bar.get_height() for bar in bars] == [100.0 if len(found) > 2 else 0.0] * 2


# --- the line ---------------------------------------------------------------------------------------------------


@given(latency_s=st.floats(0.01, 100), bandwidth=st.floats(1e6, 1e10), smallest=st.integers(10**5, 10**8))
def test_a_line_is_found_again(latency_s, bandwidth, smallest):
    sizes = [smallest * 10**n for n in range(4)]
    line = fit([(size, latency_s + size / bandwidth) for size in sizes])
    slow = sizes[-1] / bandwidth > 0.01 * latency_s  # otherwise the times hardly tell of a bandwidth
    if line is not None and slow:
        seconds = [line.seconds(size) for size in sizes]
        assert seconds == pytest.approx([latency_s + size / bandwidth for size in sizes], rel=1e-3)
    assert line is not None or not slow


def test_the_spread_holds_the_truth():
    draw, sizes = numpy.random.default_rng(4), [10**8, 10**9, 10**10]
    held = 0
    for _ in range(40):
        line = fit([(n, (2.0 + n / 300e6) * draw.lognormal(0, 0.2)) for n in sizes for _ in range(4)])
        low, high = line.bandwidth_range
        held += low < 300e6 < high
    assert 20 <= held <= 36  # one standard error: about two in three


def test_slow_small_files_make_a_latency_and_large_ones_do_not_drown_it():
    line = fit([(10**6, 2.0), (10**6, 2.2), (10**10, 30.0), (10**10, 60.0)])
    assert line.latency_s == pytest.approx(2.1, rel=0.05)
    assert line.bandwidth == pytest.approx(10**10 / 40.4, rel=0.05)


def test_a_latency_is_never_below_zero():
    line = fit([(10**6, 1.0), (2 * 10**6, 2.4), (4 * 10**6, 6.0)])
    assert line.latency_s == 0
    assert line.bandwidth == pytest.approx(0.8e6, rel=0.2)


def test_too_few_times_give_no_line():
    assert fit([]) is None
    assert fit([(10**6, 1.0), (10**6, 1.1)]) is None
    assert fit([(10**6, 1.0), (10**7, 1.0), (10**8, 1.0)]) is None
    assert fit([(10**6, 2.0), (10**8, 1.0)]) is None
    assert fit([(10**6, 0.0), (10**8, 1.0)]) is None
    two = fit([(10**6, 1.0), (10**8, 2.0)])
    assert (two.latency_error_s, two.bandwidth_range) == (None, None)


def test_a_bandwidth_that_is_hardly_told_has_no_upper_edge():
    line = fit([(10**6, 1.0), (10**6, 3.0), (10**8, 1.1), (10**8, 3.1)])
    assert line.bandwidth_range[1] == math.inf
    assert line_texts(line)[3].endswith(" or more")


def test_each_site_and_direction_has_its_line():
    lines = lines_of([*timed("polaris", 1.0, 500e6, 10**8, 10**9), *timed("aurora", 3.0, 50e6, 10**8, 10**9)])
    assert list(lines) == [("polaris", SEND), ("polaris", RETURN), ("aurora", SEND), ("aurora", RETURN)]
    assert lines["polaris", SEND].bandwidth == pytest.approx(500e6, rel=0.05)
    assert lines["aurora", RETURN].latency_s == pytest.approx(3.0, rel=0.05)
    assert lines["aurora", SEND].largest == 10**9


# --- savings ----------------------------------------------------------------------------------------------------


def test_adapters_and_precisions_of_a_published_model():
    lines = {("polaris", SEND): LINE, ("polaris", RETURN): replace(LINE, bandwidth=200e6), ("aurora", SEND): LINE}
    found = {way.name: way for way in savings.savings(model_of("opt-1.3b"), lines)}
    assert list(found) == ["fp32", "bf16", "int8", "LoRA, rank 64", "LoRA, rank 16", "LoRA, rank 8"]
    assert found["bf16"].nbytes == pytest.approx(2 * 1_315_758_080, rel=1e-4)
    assert found["int8"].nbytes == pytest.approx(1_315_758_080, rel=1e-4)
    # q, k, v, out: 2048 + 2048 each; fc1, fc2: 2048 + 8192 each; 24 layers, 4 bytes
    assert found["LoRA, rank 8"].nbytes == 4 * 8 * 24 * (4 * 4096 + 2 * 10240)
    assert found["LoRA, rank 64"].nbytes == 8 * found["LoRA, rank 8"].nbytes
    nbytes = found["LoRA, rank 8"].nbytes
    assert found["LoRA, rank 8"].seconds == {"polaris": pytest.approx(3.0 + nbytes / 400e6 + nbytes / 200e6)}
    assert (found["bf16"].beyond, found["LoRA, rank 64"].beyond) == (True, False)


def test_a_model_of_ones_own_has_precisions_only():
    found = savings.savings(model_of("mine=1_000_000"), {("polaris", SEND): LINE, ("polaris", RETURN): None})
    assert [way.name for way in found] == ["fp32", "bf16", "int8"]
    assert all(way.seconds == {} for way in found)
    told = printed(savings.as_table(model_of("mine=1_000_000"), found))
    assert "mine" in told and "50 %" in told and "outside" not in told


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def measured() -> list[TransferRow]:
    return [*timed("polaris", 1.0, 900e6, 10**8, 10**9, 10**10), *timed("perlmutter", 2.0, 200e6, 10**8, 10**9)]


def test_the_size_of_files_stands_beside_its_line(measured):
    axes = figures.sizes_figure(measured, 2).axes[0]
    line, points = axes.get_lines()
    assert list(points.get_ydata()) == [10**8, 10**9, 10**10]
    assert [y / x for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)] == [2.0, 2.0]
    assert [text.get_text() for text in axes.texts] == ["m100000000", "m1000000000", "m10000000000"]


def test_speed_rises_with_size_for_each_site_and_direction(measured):
    figure = figures.speed_figure(measured, lines_of(measured))
    there, back = figure.axes
    assert (there.get_title(loc="left"), back.get_title(loc="left")) == ("to the site", "back")
    curves = [line.get_ydata() for line in there.get_lines() if len(line.get_ydata()) == 100]
    assert len(curves) == 2
    assert all((numpy.diff(curve) > 0).all() for curve in curves)
    assert curves[0][-1] == pytest.approx(900 / (1 + 0.09), rel=0.05)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["polaris", "perlmutter"]
    assert there.get_yscale() == "linear" and there.get_ylim()[1] > max(row.rate_mb_s for row in measured)


def test_the_mean_speed_is_over_the_models(measured):
    axes = figures.mean_figure(measured).axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    middles = [speed.middle for speed in speeds(measured, "perlmutter", RETURN).values()]
    assert len(heights) == 4
    assert heights[3] == pytest.approx(sum(middles) / 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["polaris", "perlmutter"]


def test_what_is_beyond_the_measured_is_hollow(measured):
    ways = savings.savings(model_of("opt-1.3b"), lines_of(measured))
    left, right = figures.savings_figure("opt-1.3b", ways).axes
    assert [patch.get_width() for patch in left.patches] == [way.nbytes for way in ways]
    hollow = [line for line in right.get_lines() if line.get_markerfacecolor() == "#FFFFFF"]
    assert len(hollow) == 2 * sum(way.beyond for way in ways) == 2 * 5
    assert "hollow" in right.get_xlabel()


def test_one_size_gives_pictures_too(tmp_path):
    found = trip(ROW)
    ways = savings.savings(model_of("mine=1_000_000"), lines_of(found))
    for paint, inputs in (
        (figures.sizes_figure, (found, 2)),
        (figures.speed_figure, (found, lines_of(found))),
        (figures.mean_figure, (found,)),
        (figures.savings_figure, ("mine", ways)),
    ):
        path = save(tmp_path / f"{paint.__name__}.png", paint, *inputs)
        assert path.read_bytes().startswith(b"\x89PNG")
