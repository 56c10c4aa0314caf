"""Figures of the cost of a campaign: moved bytes, time per phase.

Each function takes plain tables and returns a matplotlib Figure; `figure_style.save` writes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from workflows.console.units import UNIT_NAMES, bytes_text, time_unit, times_text
from workflows.records.event_log import Move
from workflows.records.timeline import BESIDE, EVALUATION, PHASES, Timeline, phase_seconds, round_lengths
from workflows.reporting.figure_style import MOST_LINES, MOST_MARKS, PHASE_COLOURS, line_style, new_figure, whole_rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Phases = Mapping[int, Mapping[str, float]]  # round -> phase -> seconds
OUTLIER, MIN_ROUNDS_TO_CUT = 4.0, 8  # an axis is cut if a round is so many times as long as the usual one


def cost_figure(moved: Sequence[Move], timeline: Timeline, full_nbytes: int | None, sites: Sequence[str]) -> Figure:
    """Draw bytes per round, stacked by site (left), and seconds per phase of each round (right).

    If the strategy has no rounds, bytes are shown over time: a version is made whenever an update arrives, and its
    transfers were earlier, or for several versions.
    """
    figure, (left, right) = new_figure(14, 6.4, ncols=2)
    rounds = {move.round for move in moved}
    if timeline.period == "round" and (len(rounds) > MOST_MARKS or len(sites) > MOST_LINES):
        _bytes_line_panel(left, moved, full_nbytes, timeline.period)
    elif timeline.period == "round":
        _bytes_panel(left, moved, full_nbytes, sites, timeline.period)
    else:
        _bytes_over_time(left, moved, full_nbytes, sites, timeline)
    _seconds_panel(right, timeline)
    return figure


def _bytes_panel(axes: Axes, moved: Sequence[Move], full_nbytes: int | None, sites: Sequence[str], period: str) -> None:
    from matplotlib.ticker import FuncFormatter

    rounds = sorted({move.round for move in moved})
    base: dict[tuple[int, bool], float] = defaultdict(float)
    nbytes_of: Counter[tuple[str, bool, int]] = Counter()
    for move in moved:
        nbytes_of[move.site, move.out, move.round] += move.nbytes
    for site in sites:
        colour = line_style(site, sites)["color"]
        for out, shift in ((True, -0.2), (False, 0.2)):
            sums = [nbytes_of[site, out, number] for number in rounds]
            look = {"color": colour, "edgecolor": "#FFFFFF", "linewidth": 0.6, "hatch": "" if out else "////"}
            bottoms = [base[number, out] for number in rounds]
            axes.bar([r + shift for r in rounds], sums, 0.38, bottoms, label=site if out else None, **look)
            for number, nbytes in zip(rounds, sums, strict=True):
                base[number, out] += nbytes
    title = f"bytes per {period}; plain: to the sites, hatched: back"
    if full_nbytes and moved:
        title += "\n" + _compare_with_full_model(axes, moved, full_nbytes, max(base.values()))
    axes.set_title(title, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    _finish_bars(axes, rounds, len(sites) <= 12, period)


def _bytes_line_panel(axes: Axes, moved: Sequence[Move], full_nbytes: int | None, period: str) -> None:
    """Draw the bytes of each round as two lines, the sums over the sites: of many rounds or sites."""
    from matplotlib.ticker import FuncFormatter

    sums: Counter[tuple[int, bool]] = Counter()
    for move in moved:
        sums[move.round, move.out] += move.nbytes
    rounds = sorted({move.round for move in moved})
    for out, style, label in ((True, "-", "to the sites"), (False, (0, (3, 2)), "back")):
        heights = [sums[number, out] for number in rounds]
        axes.step(rounds, heights, where="mid", color="#332288", linestyle=style, linewidth=1.6, label=label)
    title = f"bytes per {period}, sum over the sites"
    if full_nbytes and moved:
        title += "\n" + _compare_with_full_model(axes, moved, full_nbytes, max(sums.values()))
    axes.set_title(title, loc="left")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    _finish_bars(axes, rounds, True, period)


def _bytes_over_time(
    axes: Axes, moved: Sequence[Move], full_nbytes: int | None, sites: Sequence[str], timeline: Timeline
) -> None:
    """Draw the bytes moved so far, one step line for each site and direction."""
    from matplotlib.ticker import FuncFormatter

    unit, size = time_unit(timeline.length_s)
    for site in sites:
        for out, width in ((True, 3.0), (False, 1.2)):
            own = sorted(
                (move.ended - timeline.origin, move.nbytes) for move in moved if (move.site, move.out) == (site, out)
            )
            times = [0.0, *(ended_s for ended_s, _ in own), timeline.length_s]
            sums = [0, *accumulate(nbytes for _, nbytes in own)]
            look = line_style(site, sites) | {"linewidth": width}
            axes.step(
                [time / size for time in times], [*sums, sums[-1]], where="post", label=site if out else None, **look
            )
    title = "bytes moved so far; thick: to the sites, thin: back"
    if full_nbytes and moved:
        times_more = times_text(full_nbytes * len(moved) / max(1, sum(move.nbytes for move in moved)))
        title += f"\nfull models instead: {bytes_text(full_nbytes * len(moved))}, {times_more}"
    axes.set_title(title, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.set_xlim(0, max(timeline.length_s / size, 1e-3))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{UNIT_NAMES[unit]} since the campaign was opened")
    _legend_below(axes, len(sites) <= 12)


def _compare_with_full_model(axes: Axes, moved: Sequence[Move], full_nbytes: int, highest: float) -> str:
    """Draw a line at the bytes of full models if it fits into the panel; return the text for the title."""
    per_round = full_nbytes * max(Counter((m.round, m.out) for m in moved).values())
    if per_round <= 4 * highest:
        axes.axhline(per_round, color="#000000", linewidth=1.4, linestyle="--", label="full model")
    times = full_nbytes * len(moved) / max(1, sum(move.nbytes for move in moved))
    return f"full model: {bytes_text(per_round)} each way, {times_text(times)}"


def _seconds_panel(axes: Axes, timeline: Timeline) -> None:
    phases, lengths = phase_seconds(timeline), round_lengths(timeline)
    unit, size = time_unit(max(lengths.values(), default=0.0))
    draw = _seconds_bars if len(phases) <= MOST_MARKS else _seconds_areas
    draw(axes, phases, lengths, timeline, size)
    title = f"time per {timeline.period}, mean over the sites\nevaluation runs beside the next {timeline.period}"
    axes.set_title(title + _cut_off_long_rounds(axes, lengths, unit, size, timeline.period), loc="left")
    axes.set_ylabel(UNIT_NAMES[unit])
    _finish_bars(axes, list(phases), True, timeline.period)


def _cut_off_long_rounds(axes: Axes, lengths: Mapping[int, float], unit: str, size: float, period: str) -> str:
    """Cut the axis where a few rounds are far longer than the others; return the note about them, or nothing."""
    ordered = sorted(lengths.values())
    usual = ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0
    long = [number for number, length in lengths.items() if usual > 0 and length > OUTLIER * usual]
    if not long or len(ordered) < MIN_ROUNDS_TO_CUT:
        return ""
    axes.set_ylim(0, 1.5 * usual / size)
    longest = max(long, key=lengths.__getitem__)
    return f"\ncut off: {period} {longest} with {lengths[longest] / size:.3g} {unit}" + (
        f" and {len(long) - 1} more" if len(long) > 1 else ""
    )


def _seconds_bars(axes: Axes, phases: Phases, lengths: Mapping[int, float], timeline: Timeline, size: float) -> None:
    base = dict.fromkeys(phases, 0.0)
    for phase in (phase for phase in PHASES if phase not in BESIDE):
        heights = [phases[number].get(phase, 0.0) / size for number in phases]
        if any(heights):
            places = [number - 0.13 for number in phases]
            axes.bar(places, heights, 0.5, list(base.values()), color=PHASE_COLOURS[phase], label=timeline.label(phase))
            base = {number: base[number] + height for number, height in zip(phases, heights, strict=True)}
    beside = [sum(phases[number].get(phase, 0.0) for phase in BESIDE) / size for number in phases]
    axes.bar([number + 0.26 for number in phases], beside, 0.2, color=PHASE_COLOURS[EVALUATION], label="evaluation")
    for number, length in lengths.items():
        label = f"length of the {timeline.period}" if number == min(lengths) else "_nolegend_"
        axes.hlines(length / size, number - 0.42, number + 0.16, color="#D55E00", linewidth=2.2, label=label)


def _seconds_areas(axes: Axes, phases: Phases, lengths: Mapping[int, float], timeline: Timeline, size: float) -> None:
    """Draw the phases of many rounds as areas on each other."""
    numbers = list(phases)
    shown = [phase for phase in PHASES if phase not in BESIDE and any(p.get(phase) for p in phases.values())]
    heights = [[phases[number].get(phase, 0.0) / size for number in numbers] for phase in shown]
    if shown:
        look: dict[str, Any] = {
            "colors": [PHASE_COLOURS[p] for p in shown],
            "labels": [timeline.label(p) for p in shown],
        }
        axes.stackplot(numbers, heights, **look, step="mid", linewidth=0)
    beside = [sum(phases[number].get(phase, 0.0) for phase in BESIDE) / size for number in numbers]
    axes.step(numbers, beside, where="mid", color=PHASE_COLOURS[EVALUATION], linewidth=1.2, label="evaluation")
    values = [length / size for length in lengths.values()]
    label = f"length of the {timeline.period}"
    axes.step(list(lengths), values, where="mid", color="#D55E00", linewidth=1.2, label=label)


def _finish_bars(axes: Axes, rounds: Sequence[int], with_legend: bool, period: str) -> None:
    whole_rounds(axes, max(rounds, default=1), first=min(rounds, default=1))
    axes.set_xlim(min(rounds, default=1) - 0.6, max(rounds, default=1) + 0.6)
    axes.set_xlabel(period)
    axes.grid(False, axis="x")
    _legend_below(axes, with_legend)


def _legend_below(axes: Axes, with_legend: bool) -> None:
    if with_legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, columnspacing=1.2, handlelength=1.4)
