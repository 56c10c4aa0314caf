"""The study of queue waits: bins, quantiles, what the pictures draw, and the command."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from campaigns import environment
from hypothesis import given
from hypothesis import strategies as st

from workflows import queue_study
from workflows.records.queue_history import BlockRecord, append
from workflows.reporting.figure_style import save
from workflows.studies.queues.figures import FEW, NODES, PANELS, WALLTIME, shown_queues, wait_figure
from workflows.studies.queues.table import (
    UNKNOWN,
    WALLTIMES,
    as_csv,
    node_bins,
    node_label,
    node_range,
    quantile,
    summarise,
    walltime_bins,
    walltime_label,
    walltime_range,
)
from workflows.studies.queues.waits import Wait, as_table

HOUR = 3600.0


def waits(*rows: tuple[str, int, float | None, float]) -> pandas.DataFrame:
    """Return waits from rows of queue, nodes, walltime and wait in hours."""
    return as_table(
        Wait("m", queue, nodes, None if wall is None else wall * HOUR, wait * HOUR, 1_780_000_000.0 + number)
        for number, (queue, nodes, wall, wait) in enumerate(rows)
    )


@given(st.integers(1, 10**6))
def test_each_node_count_is_in_the_range_of_its_bin(nodes: int) -> None:
    low, high = node_range(int(node_bins(pandas.Series([nodes]))[0]))
    assert low <= nodes <= high


def test_node_bins_double() -> None:
    assert [node_label(n) for n in range(6)] == ["1", "2", "3–4", "5–8", "9–16", "17–32"]
    assert list(node_bins(pandas.Series([1, 2, 3, 4, 5, 128, 129]))) == [0, 1, 2, 2, 3, 7, 8]


@given(st.floats(1, 1e7))
def test_each_walltime_is_in_the_range_of_its_bin(walltime_s: float) -> None:
    over, to = walltime_range(int(walltime_bins(pandas.Series([walltime_s]))[0]))
    assert over < walltime_s <= to


def test_walltime_bins_hold_their_upper_limit() -> None:
    numbers = walltime_bins(pandas.Series([900.0, 901, HOUR, 7200, 7201, 8 * 86400, math.nan]))
    assert [walltime_label(n) for n in numbers] == [
        "to 15 min",
        "15–30 min",
        "30–60 min",
        "1–2 h",
        "2–3 h",
        "over 7 d",
        "unknown",
    ]
    assert all(math.isnan(limit) for limit in walltime_range(UNKNOWN)) and len(WALLTIMES) == UNKNOWN


@pytest.mark.parametrize(("count", "given"), [(1, "m"), (3, "m"), (4, "m75"), (9, "m75"), (10, "m7590")])
def test_a_quantile_needs_jobs_beyond_it(count: int, given: str) -> None:
    series = pandas.Series(range(count), dtype=float)
    found = {word: quantile(series, share) for word, share in (("m", 0.5), ("75", 0.75), ("90", 0.9))}
    assert "".join(word for word, value in found.items() if not math.isnan(value)) == given
    assert found["m"] == (count - 1) / 2


def test_the_table_and_its_csv() -> None:
    ten = [("debug", 2, 1.0, float(n)) for n in range(10)]
    summary = summarise(waits(*ten, ("debug", 5, None, 2.0)))
    assert summary["jobs"].tolist() == [10, 1]
    assert as_csv(summary).splitlines() == [
        "machine,queue,nodes_from,nodes_to,walltime_over_s,walltime_to_s,jobs,median_s,p75_s,p90_s",
        "m,debug,2,2,1800,3600,10,16200,24300,29160",
        "m,debug,5,8,,,1,7200,,",
    ]


def drawn_boxes(axes: Any) -> list[tuple[float, float, float]]:
    """Return place, lower and upper end of each box."""
    boxes = [patch.get_path().get_extents() for patch in axes.patches]
    return [((box.x0 + box.x1) / 2, box.y0, box.y1) for box in boxes]


def drawn_lines(axes: Any, marker: str) -> list[tuple[list[float], list[float]]]:
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]) for line in lines]


def test_a_bin_of_many_is_a_box_with_its_quantiles_and_mean() -> None:
    hours = [float(n) for n in range(1, 12)]
    axes = wait_figure(waits(*[("q", 4, 1.0, hour) for hour in hours]), NODES).axes[0]
    assert drawn_boxes(axes) == [(0.0, 3.5, 8.5)]
    assert drawn_lines(axes, "D") == [([0.0], [6.0])]
    medians = [line.get_ydata() for line in axes.lines if line.get_linewidth() == 2.4]
    assert [list(line) for line in medians] == [[6.0, 6.0]]
    ends = sorted(float(line.get_ydata()[1]) for line in axes.lines if line.get_linewidth() == 1.6)
    assert (ends[0], ends[-1]) == (2.0, 10.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3–4\n11"]


def test_a_bin_of_few_shows_each_job_and_no_box() -> None:
    figure = wait_figure(waits(("q", 1, 1.0, 3.0), ("q", 1, 1.0, 1.0), ("q", 8, 1.0, 2.0)), NODES)
    axes = figure.axes[0]
    assert not axes.patches and not drawn_lines(axes, "D")
    [(places, hours), (place, hour)] = drawn_lines(axes, "o")
    assert hours == [1.0, 3.0] and places == pytest.approx([-0.03, 0.03])
    assert (place, hour) == ([3.0], [2.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n2", "2\n–", "3–4\n–", "5–8\n1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"one job (bins of fewer than {FEW})"]


def test_short_waits_are_at_the_lower_end_of_a_log_axis_in_hours() -> None:
    figure = wait_figure(waits(("q", 1, 1.0, 0.0), ("q", 1, 1.0, 30.0)), WALLTIME)
    axes = figure.axes[0]
    assert drawn_lines(axes, "o")[0][1] == [60 / HOUR, 30.0]
    assert axes.get_yscale() == "log" and figure.get_supylabel() == "wait in hours, log scale"
    figure.canvas.draw()  # type: ignore[attr-defined]
    labels = {
        round(tick, 4): label.get_text() for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert labels == {0.0167: "≤1 min", 0.1: "0.1", 1.0: "1", 10.0: "10"}
    assert [text.get_text() for text in axes.texts] == ["1 hour", "1 day"]


def test_waits_of_seconds_start_at_one_second() -> None:
    axes = wait_figure(waits(("q", 1, 1.0, 0.1 / HOUR), ("q", 1, 1.0, 20 / HOUR)), NODES).axes[0]
    assert drawn_lines(axes, "o")[0][1] == pytest.approx([1 / HOUR, 20 / HOUR])


def test_each_queue_has_a_panel_and_all_share_their_bins() -> None:
    table = waits(("debug", 1, 1.0, 1.0), ("prod", 4, 12.0, 5.0), ("prod", 4, None, 5.0))
    panels = [axes for axes in wait_figure(table, NODES).axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["m, queue debug: 1 job", "m, queue prod: 2 jobs"]
    assert {len(axes.get_xticks()) for axes in panels} == {3} and panels[0].get_ylim() == panels[1].get_ylim()
    by_walltime = wait_figure(table, WALLTIME).axes[1]
    labels = [label.get_text() for label in by_walltime.get_xticklabels()]
    assert labels[-1] == "unknown\n1" and labels[-2] == "6–12 h\n1" and labels[0] == "30–60 min\n–"


def test_of_many_queues_those_with_the_most_jobs_are_shown() -> None:
    rows = [(f"q{n:02d}", 1, 1.0, 1.0) for n in range(12) for _ in range(n + 1)]
    shown = shown_queues(waits(*rows))
    assert shown == [("m", f"q{n:02d}") for n in range(12 - PANELS, 12)]
    assert sum(axes.get_visible() for axes in wait_figure(waits(*rows), NODES).axes) == PANELS


def test_pictures_can_be_written(tmp_path: Path) -> None:
    rows = [("q", 2**n, None if n == 3 else 0.5 * n, 3.0**n / 10) for n in range(8) for _ in range(2 * n + 1)]
    for axis in (NODES, WALLTIME):
        path = save(tmp_path / f"{axis.column}.png", wait_figure, waits(*rows), axis)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.csv"
    monkeypatch.setenv("CROSSFED_HISTORY", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def test_the_command_studies_the_history(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        append(BlockRecord("m", "s", "c", "pbs", "debug", str(number), 2, 600, 1e9, 1e9 + 60 * number, None, "R"))
    append(BlockRecord("m", "s", "c", "pbs", "debug", "9", 2, 600, 1e9, None, None, "Q"))
    assert queue_study.main(["--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "3 jobs submitted from 2001-09-09 to 2001-09-09: median wait 60 s." in out
    assert f"Left out of the history {history}: 1 never started." in out
    assert "Written: out/waits.csv, out/wait_by_nodes.png, out/wait_by_walltime.png" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "wait_by_nodes.png",
        "wait_by_walltime.png",
        "waits.csv",
    ]
    assert Path("out/waits.csv").read_text().splitlines()[1] == "m,debug,2,2,0,900,3,60,,"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "no job that has started in the history"),
        (["--from", "nowhere"], "there is no file nowhere"),
        (["--probe", "a=local", "--yes"], "site a: local takes no nodes and walltime: there is no queue to probe"),
        (["--probe", "a=lokal"], "site a: unknown site config 'lokal', did you mean 'local'?"),
        (["--probe", "a=local", "b=local", "--probes", "11"], "22 probes are too many: 20 in one call at most"),
        (["--probe", "a=local", "--set", "b.account=x"], "--set b.account=x: expected KEY=VALUE or SITE.KEY=VALUE"),
    ],
)
@pytest.mark.usefixtures("history")
def test_mistakes_are_reported_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], word: str) -> None:
    assert queue_study.main(arguments) == 2
    told = capsys.readouterr().err
    assert word in told and told.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--since", "soon"], ["--timeout", "2:30"], ["--probe-nodes", "1,0"]])
def test_invalid_values_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        queue_study.parse(arguments)
    assert ended.value.code == 2 and f"{arguments[1].split(',')[-1]!r} is not" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from workflows import queue_study\ntry: queue_study.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'pandas', 'matplotlib', 'parsl', 'torch', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout and done.stdout.endswith("[]\n")
