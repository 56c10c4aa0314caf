"""The figures: their data, their labels, and that each kind of run can be drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from synthetic_run import batch_run, finished_run

from workflows.console.units import bytes_text, seconds_text, time_unit
from workflows.records.event_log import Move, moves, read_events, task_runs
from workflows.records.round_graph import GraphTask, RoundGraph
from workflows.records.timeline import PHASES, Timeline
from workflows.records.timeline_building import build_timeline
from workflows.reporting.cost_figures import cost_figure
from workflows.reporting.figure_style import JOB_COLOUR, PHASE_COLOURS, SITE_COLOURS, line_style, save, spread
from workflows.reporting.gantt import timeline_figure
from workflows.reporting.loss_figures import heatmap_figure, loss_figure, task_figure
from workflows.reporting.round_graph import round_graph_figure

SITES = ["north", "south"]
PNG = b"\x89PNG\r\n\x1a\n"


def mean_table(**columns: list[float]) -> pandas.DataFrame:
    return pandas.DataFrame(columns, index=range(len(next(iter(columns.values())))))


def unknown(losses: pandas.DataFrame) -> pandas.DataFrame:
    """Return standard errors that are not known."""
    return losses * float("nan")


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.3))
def test_spread_labels_keep_order_distance_and_bounds(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0.0, 1.0)
    room = min(gap, 1.0 / max(1, len(wanted) - 1))
    in_order = [y for _, y in sorted(zip(wanted, placed, strict=True))]
    assert all(b - a >= room - 1e-9 for a, b in itertools.pairwise(in_order))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in placed)


def test_labels_that_do_not_collide_stay_where_they_are() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([], 0.1, 0.0, 1.0) == []


def test_labels_that_collide_move_apart_evenly() -> None:
    assert spread([0.5, 0.5], 0.2, 0.0, 1.0) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0], 0.2, 0.0, 1.0) == pytest.approx([0.0, 0.2])
    assert spread([1.0, 1.0, 1.0], 0.2, 0.0, 1.0) == pytest.approx([0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (4_884_480, "4.88 MB"),
        (269_030_016, "269 MB"),
        (999_900, "1 MB"),
        (26e9, "26 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_bytes_in_words(nbytes: float, text: str) -> None:
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (2.345, "2.35 s"),
        (45.6, "46 s"),
        (300, "300 s"),
        (1800, "30 min"),
        (13_500, "3.75 h"),
        (86_400 * 5, "5 d"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(("seconds", "unit"), [(0, "s"), (600, "s"), (601, "min"), (14_400, "h"), (1e6, "d")])
def test_the_unit_of_an_axis_follows_its_length(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[0] == unit


def test_twelve_sites_look_different_and_none_looks_like_the_global_model() -> None:
    sites = [f"site-{n}" for n in range(24)]
    looks = [(line_style(s, sites)["color"], str(line_style(s, sites)["linestyle"])) for s in sites]
    assert len({colour for colour, _ in looks[:12]}) == 12
    assert len(set(looks)) == 24
    assert "#000000" not in SITE_COLOURS
    assert line_style("global", sites)["linewidth"] > line_style("site-0", sites)["linewidth"]


def test_a_site_keeps_its_colour_whoever_else_is_shown() -> None:
    means = mean_table(**{"global": [1.0, 0.5], "south": [float("nan"), 0.7]})
    figure = loss_figure(means, unknown(means), SITES, 3)
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert {to_hex(line.get_color()).upper() for line in lines} == {"#000000", SITE_COLOURS[1].upper()}


def test_every_phase_has_a_colour_of_its_own() -> None:
    assert set(PHASE_COLOURS) == set(PHASES)
    assert len(set(PHASE_COLOURS.values())) == len(PHASES)


def test_the_loss_picture_draws_the_given_means_and_labels_the_ends() -> None:
    means = mean_table(**{"global": [1.4, 0.6, 0.4], "north": [float("nan"), 0.8, 0.55]})
    axes = loss_figure(means, unknown(means), SITES, 14).axes[0]
    drawn = [line for line in axes.lines if line.get_marker() == "o"]
    points: list[Any] = [line.get_xydata() for line in drawn]
    assert [line.tolist() for line in points] == [[[1, 0.8], [2, 0.55]], [[0, 1.4], [1, 0.6], [2, 0.4]]]
    assert texts(axes) == ["north  0.550", "global  0.400"]
    assert axes.get_ylabel() == "test loss [nats per token], mean over 14 tasks"


def test_end_labels_never_overlap() -> None:
    sites = [f"site-{n:02d}" for n in range(12)]
    close = {site: [1.0, 0.5 + 0.001 * n] for n, site in enumerate(sites)}
    means = mean_table(**{"global": [1.0, 0.3]}, **close)
    figure = loss_figure(means, unknown(means), sites, 2)
    figure.canvas.draw()  # type: ignore[attr-defined]
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 13
    assert all(low.y1 <= high.y0 + 1.0 for low, high in itertools.pairwise(boxes))


def losses_table(models: list[str], tasks: list[str], rounds: int = 3) -> pandas.DataFrame:
    columns = pandas.MultiIndex.from_product([models, tasks])
    values = [[1.0 / (n + 1) + 0.01 * k for k in range(len(columns))] for n in range(rounds)]
    return pandas.DataFrame(values, index=range(rounds), columns=columns)


def test_a_panel_per_task_names_the_owner_and_thins_the_others() -> None:
    owners = {"t1": ["north"], "t2": SITES, "t3": []}
    table = losses_table(["global", *SITES], list(owners))
    figure = task_figure(table, unknown(table), owners, SITES)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["t1", "t2", "t3"]
    assert [texts(axes) for axes in panels] == [["data at north"], ["data at all sites"], ["data at no site"]]
    widths = [line.get_linewidth() for line in panels[0].lines]
    assert widths[0] > widths[1] > widths[2]
    assert panels[0].lines[1].get_linestyle() == "-"
    assert panels[0].lines[2].get_linestyle() == "--"


def test_a_task_that_a_model_was_not_scored_on_leaves_its_line_out() -> None:
    losses = losses_table(["global", *SITES], ["t1"]).drop(columns=[("south", "t1")])
    figure = task_figure(losses, unknown(losses), {"t1": ["north"]}, SITES)
    assert len(figure.axes[0].lines) == 2


def test_the_heatmap_writes_every_number_and_frames_the_owner() -> None:
    final = pandas.DataFrame(
        {"global": [0.4, 0.5], "north": [0.3, float("nan")], "south": [0.9, 0.45]}, index=["t1", "t2"]
    )
    figure = heatmap_figure(final, {"t1": ["north"], "t2": ["south"]}, {"t1": "north"})
    axes = figure.axes[0]
    assert texts(axes) == ["0.400", "0.300", "0.900", "0.500", "–", "0.450"]
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert bold == ["0.300"]  # 0.450 is too close to 0.500
    patches: list[Any] = list(axes.patches)
    frames = [(round(patch.get_x() + 0.47), round(patch.get_y() + 0.46)) for patch in patches]
    assert frames == [(1, 0), (2, 1)]


def small_timeline(**changes: Any) -> Timeline:
    log = read_events(Path("absent"))
    return Timeline(**({**vars(build_timeline(log, SITES))} | changes))


def test_the_gantt_chart_shows_rows_and_unit(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", sites=2, rounds=2)
    timeline = build_timeline(read_events(run.write() / "journal.jsonl"), list(run.tasks))
    figure = timeline_figure(timeline, list(run.tasks))
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["perlmutter", "polaris", "server", "evaluator"]
    assert axes.get_xlabel() == "minutes since the campaign was opened"
    assert texts(axes) == ["round 1", "2"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "driver down" not in legend
    assert "idle (thin line)" in legend


def test_the_driver_down_is_in_the_legend_only_when_it_was() -> None:
    timeline = small_timeline(down=((10.0, 20.0),), length_s=100.0)
    legend = timeline_figure(timeline, SITES).legends[0]
    assert "driver down" in [text.get_text() for text in legend.get_texts()]


def test_round_numbers_are_thinned_out_where_they_would_overlap() -> None:
    starts = {number: float(number) for number in range(1, 200)}
    axes = timeline_figure(small_timeline(round_starts=starts, length_s=200.0), SITES).axes[0]
    assert 10 <= len(axes.texts) <= 40


def bar_heights(axes: Any) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def bar_bottoms(axes: Any) -> list[float]:
    return [patch.get_y() for patch in axes.patches]


def test_bytes_are_stacked_by_site_beside_each_other_out_and_in() -> None:
    moved = [
        Move(1, "north", True, 10),
        Move(1, "north", False, 7),
        Move(1, "south", True, 20),
        Move(1, "south", False, 5),
    ]
    left, _ = cost_figure(moved, small_timeline(length_s=1.0), 15, SITES).axes
    assert bar_heights(left) == [10, 7, 20, 5]
    assert bar_bottoms(left) == [0, 0, 10, 7]
    assert "full model: 30 B each way, 1.4 times as much" in left.get_title(loc="left")
    assert [line.get_label() for line in left.lines] == ["full model"]


def test_a_full_model_far_above_the_bars_is_a_note_and_no_line() -> None:
    moved = [Move(1, "north", True, 10), Move(1, "north", False, 10)]
    left, _ = cost_figure(moved, small_timeline(length_s=1.0), 1000, SITES).axes
    assert not left.lines
    assert "1 kB each way, 100 times as much" in left.get_title(loc="left")


def test_without_rounds_bytes_are_shown_over_time() -> None:
    """Step lines that end at the sum of each site and direction."""
    moved = [
        Move(1, "north", True, 10, 1000.0),
        Move(1, "north", False, 7, 1060.0),
        Move(2, "north", True, 10, 1061.0),
        Move(5, "south", False, 5, 1090.0),
    ]
    timeline = small_timeline(period="version", length_s=100.0, origin=1000.0)
    left, right = cost_figure(moved, timeline, 16, SITES[:2]).axes
    assert left.get_xlabel() == "seconds since the campaign was opened" and right.get_xlabel() == "version"
    stairs = [(list(line.get_xdata()), list(line.get_ydata())) for line in left.get_lines()]
    assert stairs == [
        ([0, 0, 61, 100], [0, 10, 20, 20]),
        ([0, 60, 100], [0, 7, 7]),
        ([0, 100], [0, 0]),
        ([0, 90, 100], [0, 5, 5]),
    ]
    thick, thin = (line.get_linewidth() for line in left.get_lines()[:2])
    assert thick > thin and left.get_legend_handles_labels()[1] == SITES[:2]
    assert "full models instead: 64 B, 2 times as much" in left.get_title(loc="left")


@pytest.mark.parametrize("options", [{"sites": 1, "rounds": 1}, {"sites": 12, "rounds": 2}])
def test_every_picture_of_a_run_can_be_drawn(tmp_path: Path, options: dict[str, int]) -> None:
    run = finished_run(tmp_path / "run", **options)
    log, sites = read_events(run.write() / "journal.jsonl"), list(run.tasks)
    timeline = build_timeline(log, sites)
    time = save(tmp_path / "out" / "time.png", timeline_figure, timeline, sites)
    cost = save(tmp_path / "out" / "cost.png", cost_figure, moves(task_runs(log)), timeline, None, sites)
    assert time.read_bytes().startswith(PNG)
    assert cost.read_bytes().startswith(PNG)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cost.png", "time.png"]


def batch_timeline(tmp_path: Path) -> Timeline:
    run = batch_run(tmp_path / "run")
    return build_timeline(read_events(run.write() / "journal.jsonl"), list(run.tasks))


def test_batch_jobs_are_a_band_under_their_site_and_lost_ones_are_marked(tmp_path: Path) -> None:
    timeline = batch_timeline(tmp_path)
    figure = timeline_figure(timeline, ["perlmutter", "polaris", "aurora", "frontier"])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-3:] == ["batch job queued", "batch job running", "batch job lost"]
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "X" and len(line.get_xdata())]
    lost = [job.until / 3600 for job in timeline.jobs if job.lost]
    assert [list(line.get_xdata()) for line in marks] == [pytest.approx(lost)]
    assert [list(line.get_ydata()) for line in marks] == [pytest.approx([0.28, 0.28])]


def test_the_band_is_where_the_jobs_waited_and_ran(tmp_path: Path) -> None:
    timeline = batch_timeline(tmp_path)
    bars: list[Any] = list(timeline_figure(timeline, SITES).axes[0].collections)
    bands = [bar for bar in bars if bar.get_paths() and bar.get_paths()[0].get_extents().y0 == pytest.approx(0.2)]
    extents = [[path.get_extents() for path in bar.get_paths()] for bar in bands]
    queued, ran = ([(e.x0 * 3600, e.x1 * 3600) for e in found] for found in extents)
    jobs = [job for job in timeline.jobs if job.site == "perlmutter"]
    assert queued == [pytest.approx(job.queued) for job in jobs]
    assert ran == [pytest.approx(job.ran) for job in jobs]


def test_a_campaign_without_batch_jobs_has_no_band() -> None:
    figure = timeline_figure(small_timeline(length_s=100.0), SITES)
    assert not any("batch job" in text.get_text() for text in figure.legends[0].get_texts())
    assert JOB_COLOUR not in PHASE_COLOURS.values()


def graph_of_sites(count: int) -> RoundGraph:
    base = GraphTask("m1", "aggregate", "server", (), version=1, seconds=0.1, nbytes=9)
    chains = {
        f"s{i:02d}": (
            GraphTask(f"o{i}", "stage_out", f"s{i:02d}", ("m1",), seconds=0.2, nbytes=9),
            GraphTask(f"t{i}", "local_train", f"s{i:02d}", (f"o{i}",), seconds=12.0, nbytes=9),
            GraphTask(f"u{i}", "stage_in", f"s{i:02d}", (f"t{i}",), seconds=0.3, nbytes=9),
        )
        for i in range(count)
    }
    made = GraphTask("m2", "aggregate", "server", ("m1", *(f"u{i}" for i in range(count))), version=2, seconds=0.1)
    scores = tuple(GraphTask(f"e{i}", "evaluate", "evaluator", (made.key,), seconds=1.0) for i in range(2))
    return RoundGraph((base,), chains, made, scores)


@pytest.mark.parametrize(("sites", "drawn"), [(1, 1), (4, 4), (64, 12)])
def test_the_graph_of_a_round_has_its_tasks_and_arrows(tmp_path: Path, sites: int, drawn: int) -> None:
    graph = graph_of_sites(sites)
    axes = round_graph_figure(graph, list(graph.chains)).axes[0]
    said = texts(axes)
    assert said.count("local_train") == drawn and said.count("12 s, 9 B") == drawn
    assert {"model 1", "aggregate: model 2", "evaluate, 2 models"} <= set(said)
    assert ("and 52 more sites" in said) == (sites == 64)
    arrows = sum(1 for text in axes.texts if getattr(text, "arrow_patch", None) is not None)
    assert arrows == 4 * drawn + 2  # three in a chain and one to the aggregation; the model before, the evaluation
    assert save(tmp_path / "g.png", round_graph_figure, graph, list(graph.chains)).read_bytes().startswith(PNG)
