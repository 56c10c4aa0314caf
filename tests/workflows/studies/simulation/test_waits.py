"""Queue waits: the trace format, the four scenarios, and the model against the trace it was fitted to."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from apps.base.errors import UserMistake
from workflows.console.units import DAY_S, HOUR_S
from workflows.records.queue_history import BlockRecord, append
from workflows.studies.simulation.queue_regimes import (
    BUSY_REGIMES,
    RegimeParameters,
    RegimeWaits,
    busy_cell,
    fit_regimes,
    fitted,
    rank_correlation,
)
from workflows.studies.simulation.scenarios import jobs_of, waits_of
from workflows.studies.simulation.trace import Trace, read_trace, similar_jobs
from workflows.studies.simulation.waits import CalmWaits, LogNormalWaits, ReplayedWaits

THETA = Path(__file__).resolve().parents[5] / "shared" / "queue_traces" / "theta_2022.swf.gz"


def swf_text(jobs: list[tuple[float, float, int, float]]) -> str:
    lines = [f"{k} {s} {w} 60 {n} -1 -1 {n} {a} -1 1 1 1 1 1 1 -1 -1" for k, (s, w, n, a) in enumerate(jobs, 1)]
    return "; Computer: none\n" + "\n".join(lines) + "\n"


def plain_jobs(count: int = 60) -> list[tuple[float, float, int, float]]:
    return [(1000.0 + 100 * k, float(k), 1 + k % 4, 3600.0) for k in range(count)]


def trace(waits: np.ndarray, gap_s: float) -> Trace:
    ones = np.ones(len(waits))
    return Trace(np.arange(len(waits)) * gap_s, waits, ones, ones, ones * HOUR_S)


@pytest.mark.parametrize("name", ["t.swf", "t.swf.gz"])
def test_a_trace_is_read_plain_and_compressed(name: str, tmp_path: Path) -> None:
    path, text = tmp_path / name, swf_text([*plain_jobs(), (50.0, -1.0, 4, 60.0), (0.0, 3.0, 2, -1.0)])
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = read_trace(path)
    assert len(found) == 61  # the one without a wait is out, the walltime of the other is what it ran
    assert found.submit_s[0] == 0 and found.submit_s[1] == 1000 and found.requested_s[0] == 60
    assert found.span_s == 1000 + 59 * 100


@pytest.mark.parametrize("content", [b"no trace\n", b"", b"\x1f\x8bbroken"])
def test_a_file_of_another_format_is_an_error_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.swf.gz"
    path.write_bytes(content)
    with pytest.raises(UserMistake, match="t.swf.gz"):
        read_trace(path)
    with pytest.raises(UserMistake, match="--trace"):
        jobs_of("replay", None)


def test_similar_jobs_are_small_and_of_similar_walltime() -> None:
    base = trace(np.arange(1000.0), 60.0)
    mixed = Trace(
        base.submit_s,
        base.wait_s,
        base.run_s,
        np.tile([1.0, 2.0, 64.0, 128.0], 250),
        np.repeat([1800.0, 3600.0, 36000.0, 7200.0], 250),
    )
    found = similar_jobs(mixed, HOUR_S)
    assert set(found.nodes) == {1.0, 2.0} and set(found.requested_s) == {1800.0, 3600.0, 7200.0}
    assert len(similar_jobs(mixed, HOUR_S, least=100)) == 124


def test_a_replayed_request_has_the_wait_of_the_job_submitted_next_and_starts_over_at_the_end() -> None:
    waits = ReplayedWaits(trace(np.array([5.0, 7.0, 9.0]), 100.0), 1, starts_s=(0.0, 150.0))
    assert [waits.wait_s(0, now, 1) for now in (0.0, 1.0, 150.0, 201.0)] == [5, 7, 9, 7]
    assert waits.wait_s(1, 0.0, 1) == 9
    assert ReplayedWaits(trace(np.ones(3), 100.0), 1).start_s(0) != ReplayedWaits(trace(np.ones(3), 100.0), 2).start_s(
        0
    )


def block(machine: str, job: int, submitted: float, wait_s: float | None) -> BlockRecord:
    started = None if wait_s is None else submitted + wait_s
    return BlockRecord(machine, "s", "c", "slurm", "q", str(job), 2, 3600, submitted, started, None, "COMPLETED")


def test_the_users_own_history_is_replayed_machine_by_machine(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    for job, submitted in enumerate((900.0, 100.0, 300.0, 500.0, 700.0)):  # not in order
        append(block("polaris", job, submitted, submitted / 100), path)
    for job in range(5):
        append(block("aurora", job, 1e9 + 60 * job, 7.0), path)
    for job in range(9):
        append(block("new", job, 60.0 * job, None), path)  # none has started
    jobs = jobs_of("replay", path)
    assert [len(machine) for machine in jobs] == [5, 5]
    assert jobs[1].submit_s.tolist() == [0, 200, 400, 600, 800] and jobs[1].wait_s.tolist() == [1, 3, 5, 7, 9]
    waits = waits_of("replay", 3, 1, jobs)
    assert [waits.wait_s(site, 1e4, 1) for site in (0, 2)] == [7, 7]
    assert {waits.wait_s(1, now, 1) for now in range(0, 800, 50)} - {1} == {3, 5, 7, 9}


def test_a_history_with_too_few_jobs_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    for job in range(4):
        append(block("polaris", job, 100.0 * job, 5.0), path)
    with pytest.raises(UserMistake, match="5 jobs"):
        jobs_of("replay", path)


def test_a_wait_depends_on_the_number_of_the_request() -> None:
    """Within a quarter of an hour two strategies meet the same queue."""
    waits = RegimeWaits(5, [busy_cell()], BUSY_REGIMES)
    assert waits.wait_s(0, 0.0, 1) == waits.wait_s(0, 25.0, 1) != waits.wait_s(0, 25.0, 2)


def test_log_normal_waits_have_the_given_mean() -> None:
    waits = LogNormalWaits(1, (0.9,), 0.4)
    drawn = [waits.wait_s(0, 0.0, k) for k in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.9, rel=0.03)
    assert np.mean(np.log(drawn)) == pytest.approx(-0.18536, abs=0.02)
    assert np.std(np.log(drawn)) == pytest.approx(0.4, rel=0.05)


def test_calm_waits_are_short() -> None:
    assert np.mean([CalmWaits(1).wait_s(0, 0.0, k) for k in range(2000)]) == pytest.approx(60, rel=0.1)


def test_the_busy_cell_has_its_median_its_p90_and_its_share_at_once() -> None:
    cell = busy_cell()
    assert cell.at(0.5) == pytest.approx(1.5 * HOUR_S, rel=0.02)
    assert cell.at(0.9) == pytest.approx(15 * HOUR_S, rel=0.02)
    assert cell.at(0.1) == pytest.approx(60, rel=0.02) and cell.at(0.0) >= 0
    levels = [cell.at(k / 500) for k in range(501)]
    assert levels == sorted(levels) and levels[-1] == pytest.approx(10 * DAY_S)


def test_regimes_give_the_cells_quantiles_and_the_correlation_of_the_regimes() -> None:
    """Many sites over three weeks: pooled quantiles, and the correlation of the normal scores by lag."""
    from workflows.studies.simulation.queue_regimes import normal_scores

    waits, cell = RegimeWaits(5, [busy_cell()], BUSY_REGIMES), busy_cell()
    lags = {0.0: 1, 2.0: 8, 24.0: 96}
    drawn = np.array([[waits.wait_s(site, k * 900.0, k) for k in range(0, 1200, 4)] for site in range(60)])
    for level in (0.25, 0.5, 0.75, 0.9):
        assert math.log(np.quantile(drawn, level)) == pytest.approx(math.log(cell.at(level)), abs=0.4)
    scores = normal_scores(drawn.ravel()).reshape(drawn.shape)
    for lag_h, steps in list(lags.items())[1:]:
        apart = steps // 4
        found = float(np.mean(scores[:, apart:] * scores[:, :-apart]))
        assert found == pytest.approx(BUSY_REGIMES.correlation(lag_h * HOUR_S), abs=0.08)


def test_the_order_of_the_requests_does_not_change_the_waits() -> None:
    first, second = (RegimeWaits(5, [busy_cell()], BUSY_REGIMES) for _ in range(2))
    late = first.wait_s(0, 9e5, 2)
    assert first.wait_s(0, 10.0, 1) == second.wait_s(0, 10.0, 1) and second.wait_s(0, 9e5, 2) == late
    assert first.wait_s(1, 10.0, 1) != first.wait_s(0, 10.0, 1)


def test_the_weights_of_regimes_are_recovered() -> None:
    true = RegimeParameters((1.5 * HOUR_S, DAY_S, 10 * DAY_S), (0.3, 0.1, 0.2))
    found = fit_regimes([(lag, true.correlation(lag * HOUR_S)) for lag in (0.1, 0.5, 1, 3, 10, 30, 100, 300)])
    assert found.weights == pytest.approx(true.weights, abs=1e-6) and found.nugget == pytest.approx(0.4)
    assert sum(fit_regimes([(0.1, 1.5), (1.0, 1.4)]).weights) <= 0.98 + 1e-9


def test_the_scenarios_need_no_trace_but_replay() -> None:
    for scenario in ("calm", "lognormal", "bursty"):
        assert waits_of(scenario, 4, 1).wait_s(3, 100.0, 1) >= 0  # type: ignore[arg-type]


@pytest.mark.skipif(not THETA.exists(), reason="the trace is not on this machine")
def test_a_real_trace_is_fitted() -> None:
    jobs = similar_jobs(read_trace(THETA), HOUR_S)
    cell, regimes = fitted(jobs)
    assert cell.at(0.5) == pytest.approx(float(np.median(jobs.wait_s)), rel=0.05)
    known = dict(rank_correlation(jobs))
    for lag_h in (0.3, 1.5, 20, 80):
        assert regimes.correlation(lag_h * HOUR_S) == pytest.approx(known[lag_h], abs=0.1)
