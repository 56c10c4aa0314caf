"""Scaling studies: points and their plans, rates from trainings, the table, the picture, the command."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from campaigns import PROJECT, environment, journal, nano, write_campaign
from hypothesis import given
from hypothesis import strategies as st
from patience import patience

from apps.base.errors import TrainingError, UserMistake
from site_configs.library.site import Block, Queue
from site_configs.local import site as local_site
from workflows.planning.campaign import Campaign
from workflows.planning.memory.estimate import Choice, Machine, Need
from workflows.planning.memory.model import shape_of
from workflows.planning.memory.plan import MemoryPlan
from workflows.planning.plan import make_plan, model_spec
from workflows.reporting.figure_style import save
from workflows.scaling_study import main, numbers, parse
from workflows.studies.scaling.figure import scaling_figure
from workflows.studies.scaling.measure import progress_text, result_of, row_of
from workflows.studies.scaling.points import NEVER_S, ScalingPoint, Sizes, plan_for, points_of, training_of, waves
from workflows.studies.scaling.table import ScalingRow, Trained, rates, read_rows, summary, write_rows

SCRIPT = PROJECT / "workflows" / "scaling_study.py"
ROW = ScalingRow("polaris", 2, 8, "full_shard+ckpt", 6, 12.5, 11.0, 13.25, 4100.0, 3, 35_000_000_000, "abc")


def campaign(**changes) -> Campaign:
    return Campaign.model_validate(nano(**changes))


def point(
    name: str = "aurora", nodes: int = 1, ranks: int = 1, batch: bool = False, choice: Choice | None = None
) -> ScalingPoint:
    site = local_site(name, Path("runs/x"))
    if batch:
        queue = Queue("debug", 1, 8, 3600, date(2026, 8, 1), "a test")
        site = replace(site, route="batch", block=Block("slurm", queue, nodes, 3600))
    machine = Machine(nodes, ranks, int(40e9), int(512e9), batch)
    memory = MemoryPlan(
        name, machine, 4 * machine.ranks, choice or Choice("ddp", False, False, 4), Need(1, 1, 2, 0, 5, 1, 0)
    )
    return ScalingPoint(site, memory)


def run_script(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=patience(240), check=False
    )


# --- points -----------------------------------------------------------------------------------------------------


def test_a_site_on_this_machine_is_measured_over_ranks(tmp_path):
    made = campaign(sites={"aurora": {"config": "local", "tasks": ["chemical_reaction"]}})
    points, refused = points_of(made, tmp_path, shape_of(model_spec(made)), Sizes((1, 2, 4), (1, 2), 4))
    assert refused == []
    assert [p.key for p in points] == [("aurora", 1, 1), ("aurora", 1, 2)]
    assert [p.sharding for p in points] == ["none", "ddp"]
    assert [p.memory.choice.micro_batch for p in points] == [4, 4]
    assert points[1].name == "aurora, 1 node, 2 devices"
    assert points[1].memory.parallel(points[1].site)["ranks_per_node"] == 2


MACHINE = """
from dataclasses import replace
from datetime import date
from site_configs.library.site import Block, Node, Queue, Ranks
from site_configs.local import site as local

def site(name, run_dir, *, nodes: int = 1):
    block = Block("slurm", Queue("debug", 1, 8, 3600, date(2026, 8, 1), "a test"), nodes, 3600)
    node = Node(32, 512 * 10**9, 4, 40 * 10**9)
    return replace(local(name, run_dir), route="batch", device="cuda", machine="Polaris (test)", block=block, node=node,
                   ranks=Ranks(4, ("mpiexec",), "nccl"))
"""


@pytest.fixture
def big_campaign(tmp_path) -> Campaign:
    """Llama-2-7B on a batch machine with devices of 40 GB."""
    (tmp_path / "machine.py").write_text(MACHINE)
    return campaign(
        model={"source": "meta-llama/Llama-2-7b-hf", "dtype": "float32"},
        data={"max_tokens": 512},
        training={"steps": 3, "batch_size": 6, "learning_rate": 1e-5, "precision": "bf16"},
        sites={"polaris": {"config": str(tmp_path / "machine.py")}},
    )


def test_a_batch_site_is_measured_over_nodes_each_with_its_own_plan(big_campaign, tmp_path):
    shape = shape_of(model_spec(big_campaign))
    points, refused = points_of(big_campaign, tmp_path, shape, Sizes((1, 2), (1,), 6))
    assert refused == []
    assert [(p.key, p.sharding) for p in points] == [
        (("polaris", 1, 4), "full_shard+offload"),
        (("polaris", 2, 8), "shard_grad_op+ckpt"),
    ]
    assert [p.site.block.nodes for p in points] == [1, 2]


def test_sizes_that_do_not_fit_are_left_out_with_a_reason(big_campaign, tmp_path):
    shape = replace(shape_of(model_spec(big_campaign)), parameters=10**13, trained=10**13, outside=10**12)
    points, refused = points_of(big_campaign, tmp_path, shape, Sizes((1,), (1,), 6))
    assert points == []
    assert refused[0].startswith("site polaris: a model of 1e+04 G parameters")


def test_a_site_that_cannot_be_made_is_the_users_mistake(tmp_path):
    made = campaign(sites={"aurora": {"config": "no_such_machine"}})
    with pytest.raises(UserMistake, match=r"sites\.aurora: .*no_such_machine"):
        points_of(made, tmp_path, None, Sizes((1,), (1,), 4))


def test_local_points_go_alone_and_batch_sites_beside_each_other():
    local = [point("here", ranks=1), point("here", ranks=2)]
    batch = [point(name, nodes=nodes, batch=True) for name in ("polaris", "aurora") for nodes in (1, 2)]
    found = waves([*local, *batch, point("frontier", nodes=1, batch=True)])
    keys = [[p.key[:2] for p in wave] for wave in found]
    assert keys == [
        [("polaris", 1), ("aurora", 1), ("frontier", 1)],
        [("polaris", 2), ("aurora", 2)],
        [("here", 1)],
        [("here", 1)],
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()), max_size=12))
def test_every_point_is_in_one_wave_and_no_wave_has_a_site_twice(asked):
    points = [point(name + ("b" if batch else "l"), nodes, 1, batch) for name, nodes, batch in asked]
    found = waves(points)
    assert sorted(id(p) for wave in found for p in wave) == sorted(map(id, points))
    assert all(len({p.site.name for p in wave}) == len(wave) for wave in found)


def test_the_training_of_a_point_is_of_its_size():
    made = campaign(
        training={"steps": 50, "batch_size": 9, "accumulate": 3, "learning_rate": 0.1, "schedule": "cosine"}
    )
    spec = training_of(made, point(ranks=4, choice=Choice("ddp", False, False, 6)), 12)
    assert (spec["steps"], spec["batch_size"], spec["accumulate"]) == (12, 24, 1)
    assert (spec["schedule"], spec["device"], spec["checkpoint_s"], spec["learning_rate"]) == (
        "constant",
        "cpu",
        NEVER_S,
        0.1,
    )
    from apps.training.spec import TrainingSpec

    assert set(TrainingSpec.__annotations__) <= set(spec)


def test_the_plan_of_a_wave_has_its_sites_alone_and_spread_as_planned(tmp_path):
    made = campaign()
    plan = make_plan(made, tmp_path, tmp_path / "nano.yaml")
    chosen = plan_for(plan, [point("aurora", ranks=2)])
    assert list(chosen.sites) == ["aurora"]
    assert chosen.site_work["aurora"]["parallel"]["sharding"] == "ddp"
    assert chosen.site_work["aurora"]["data"] == plan.site_work["aurora"]["data"]
    assert list(plan.sites) == ["aurora", "frontier"]


# --- rates and the table ----------------------------------------------------------------------------------------


def test_what_the_first_steps_cost_is_left_out():
    short, long = Trained(16, 800, 5.0), Trained(96, 4800, 9.0)
    assert rates(short, [long]) == [(20.0, 1000.0)]


def test_more_steps_in_less_time_tell_nothing():
    with pytest.raises(UserMistake, match="too short to be measured"):
        rates(Trained(16, 800, 5.0), [Trained(96, 4800, 4.0)])


def test_the_median_and_the_spread():
    found = summary([(10.0, 500.0), (30.0, 700.0), (12.0, 600.0)])
    assert found == {"samples_per_s": 12.0, "low": 10.0, "high": 30.0, "tokens_per_s": 600.0, "repeats": 3}


rows = st.builds(
    ScalingRow,
    site=st.sampled_from(["polaris", "aurora"]),
    nodes=st.integers(1, 64),
    devices=st.integers(1, 768),
    sharding=st.sampled_from(["none", "ddp", "full_shard+offload"]),
    micro_batch=st.integers(1, 8),
    samples_per_s=st.integers(1, 999).map(float),
    low=st.just(0.5),
    high=st.just(1e3),
    tokens_per_s=st.just(12.25),
    repeats=st.just(3),
    planned_bytes=st.integers(0, 10**11),
    code=st.just("0123abcd"),
)


@given(found=st.lists(rows, max_size=5, unique_by=lambda row: row.key))
def test_rows_come_back_as_they_were_written(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("table") / "scaling.csv"
    write_rows(path, found)
    assert read_rows(path) == sorted(found, key=lambda row: row.key)


def test_no_table_has_no_rows_and_another_file_is_refused(tmp_path):
    assert read_rows(tmp_path / "scaling.csv") == []
    (tmp_path / "scaling.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserMistake, match="not a table of a scaling study"):
        read_rows(tmp_path / "scaling.csv")


def done(samples: int, seconds: float) -> Future:
    future: Future = Future()
    future.set_result({"samples": samples, "tokens": 50 * samples, "train_s": seconds})
    return future


def test_the_result_of_a_point_is_its_row():
    found = result_of(point(ranks=2), [done(8, 1.0), done(48, 3.0), done(48, 2.0), done(48, 5.0)], "abc")
    assert found.failure == ""
    assert found.row == ScalingRow("aurora", 1, 2, "ddp", 4, 20.0, 10.0, 40.0, 1000.0, 3, 10, "abc")


def test_a_point_whose_training_failed_has_a_reason():
    failed: Future = Future()
    failed.set_exception(TrainingError("loss is nan at step 2", site="aurora"))
    found = result_of(point(), [done(8, 1.0), failed], "abc")
    assert found.row is None
    assert "site aurora: loss is nan" in found.failure


def test_a_plan_that_was_not_checked_has_no_bytes():
    unchecked = replace(point(), memory=replace(point().memory, need=None))
    assert row_of(unchecked, Trained(8, 1, 1.0), [Trained(48, 2, 3.0)], "abc").planned_bytes == 0


def test_how_far_a_point_is():
    found = progress_text(point("aurora", 2, 4), [done(1, 1.0), Future()])
    assert found == "aurora, 2 nodes, 8 devices: training 2 of 2"


# --- the picture ------------------------------------------------------------------------------------------------


def some_rows(
    *sizes: int, site: str = "polaris", rate: float = 4.0, sharding: str = "shard_grad_op"
) -> list[ScalingRow]:
    return [
        replace(
            ROW,
            site=site,
            nodes=n,
            devices=4 * n,
            samples_per_s=rate * n,
            low=rate * n * 0.9,
            high=rate * n * 1.1,
            sharding=sharding,
        )
        for n in sizes
    ]


def test_a_line_for_each_site_in_both_panels():
    found = scaling_figure([*some_rows(1, 2, 4), *some_rows(1, 2, site="aurora", rate=30.0, sharding="ddp")])
    left, right = found.axes
    assert (left.get_xlabel(), right.get_xlabel(), left.get_ylabel()) == ("nodes", "devices", "samples a second")
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    by_label = {line.get_label(): line for line in right.get_lines()}
    assert list(by_label["polaris"].get_xdata()) == [4, 8, 16]
    assert list(by_label["polaris"].get_ydata()) == [4.0, 8.0, 16.0]
    assert list(right.get_xticks()) == [4, 8, 16]
    names = [text.get_text() for text in found.legends[0].get_texts()]
    assert names == ["polaris", "aurora", "shard_grad_op", "ddp", "in proportion"]


def test_rates_close_together_stand_on_plain_axes_from_zero():
    found = scaling_figure(some_rows(1, 2))
    assert found.axes[0].get_yscale() == "linear"
    assert found.axes[0].get_ylim()[0] == 0


def test_sizes_that_give_equal_panels_are_drawn_once():
    for rows in (some_rows(1), [replace(ROW, nodes=n, devices=n) for n in (1, 2)]):
        (panel,) = scaling_figure(rows).axes
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("devices", "samples a second")


def test_the_panel_of_nodes_takes_the_most_devices_of_a_size():
    one, two = replace(ROW, nodes=1, devices=1, samples_per_s=12.0), replace(ROW, nodes=1, devices=2)
    left, right = scaling_figure([one, two]).axes
    assert list(left.get_lines()[0].get_xdata()) == [1]
    assert list(left.get_lines()[0].get_ydata()) == [12.5]
    assert list(right.get_lines()[0].get_xdata()) == [1, 2]


def test_marks_tell_the_strategy(tmp_path):
    strategies = ["none", "ddp", "shard_grad_op+ckpt", "full_shard+offload", "full_shard+ckpt+offload"]
    found = [replace(ROW, nodes=n, devices=n, sharding=s) for n, s in enumerate(strategies, start=1)]
    handles = scaling_figure(found).legends[0].legend_handles
    marks = [(h.get_marker(), h.get_fillstyle(), h.get_markerfacecolor()) for h in handles[1:-1]]
    assert marks == [
        ("o", "full", "#555555"),
        ("D", "full", "#555555"),
        ("s", "left", "#555555"),
        ("^", "full", "#FFFFFF"),
        ("^", "full", "#FFFFFF"),
    ]
    path = save(tmp_path / "scaling.png", scaling_figure, found)
    assert path.read_bytes().startswith(b"\x89PNG")


# --- the command ------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_and_checked():
    assert numbers("4,1, 2,2") == (1, 2, 4)
    with pytest.raises(SystemExit):
        parse(["--nodes", "1,x"])
    assert parse([]).repeats == 3


def test_help_needs_none_of_the_heavy_libraries():
    code = (
        "import sys\nfrom workflows.scaling_study import parse\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'parsl', 'pandas', 'matplotlib', 'rich', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert asked.returncode == 0, asked.stderr
    assert "points in that" in asked.stdout


def test_a_dry_run_tells_the_plans_and_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(write_campaign(tmp_path)), "--ranks", "1,2", "--sites", "aurora", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "memory aurora:       1 node x 1 rank, none, micro-batch 4" in told
    assert "memory aurora:       1 node x 2 ranks, ddp, micro-batch 4" in told
    assert "per rank: weights" in told
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_campaign(tmp_path)
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert main([str(path), "--set", "training.stepz=1"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "there is no campaign file" in told[0]
    assert "did you mean 'steps'" in told[1]


def test_a_complete_table_is_only_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "nano-scaling"
    write_rows(folder / "scaling.csv", [replace(ROW, site="aurora", nodes=1, devices=1)])
    assert main([str(write_campaign(tmp_path)), "--sites", "aurora"]) == 0
    assert "1 of 1 point is in runs/nano-scaling/scaling.csv already" in capsys.readouterr().out
    assert (folder / "scaling.png").is_file()
    assert not (folder / "journal.jsonl").exists()


@pytest.mark.campaign
def test_a_study_on_this_machine_from_end_to_end(tmp_path):
    path = write_campaign(tmp_path)
    asked = (path, "--sites", "aurora", "--steps", 20, "--repeats", 2)
    first = run_script(tmp_path, *asked)
    assert first.returncode == 0, first.stderr
    assert "aurora: 1 x 1 device, none: " in first.stdout
    folder = tmp_path / "runs" / "nano-scaling"
    (row,) = read_rows(folder / "scaling.csv")
    assert (row.key, row.sharding, row.micro_batch, row.repeats) == (("aurora", 1, 1), "none", 4, 2)
    assert 0 < row.low <= row.samples_per_s <= row.high
    trained = [r["result"] for r in journal(folder, "task_done") if r["app"] == "local_train"]
    assert [(m["steps_done"], m["samples"]) for m in trained] == [(2, 8), (22, 88), (22, 88)]
    (folder / "scaling.csv").unlink()  # as if the driver had been killed before it wrote the row
    again = run_script(tmp_path, *asked)
    assert again.returncode == 0, again.stderr
    assert read_rows(folder / "scaling.csv") == [row]
    assert len([r for r in journal(folder, "task_done") if r["app"] == "local_train"]) == 3
    other = run_script(tmp_path, *asked, "--ranks", "1,2", "--set", "training.learning_rate=0.5")
    assert other.returncode == 2
    assert "was started with training.learning_rate: 0.003, not 0.5. Choose another --name" in other.stderr
