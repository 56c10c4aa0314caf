"""Measure how many rounds a second the driver can manage: the real engine and real files, with an empty trainer.

    python tests/benchmarks/orchestration.py [--rounds 40] [--repeats 3] [--sites 4 16] [--processes]

A round is stage-out, training and stage-in with all checks for each site, then aggregation; the model has 1e5 float32
parameters. By default the tasks run in threads of the driver, which shows the limit of the driver itself; with
``--processes`` they run in worker processes (Parsl's HighThroughputExecutor), one per site and one for the server.
The rounds a second of other systems that are printed for comparison were measured on a machine of the same kind with
4 and 16 clients and a model of the same size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent), str(Path(__file__).resolve().parent.parent)]
PARAMETERS = 100_000
OTHERS = {
    "APPFL 1.12 (serial default)": (0.12, 0.05),
    "NVIDIA FLARE 2.9 (simulator)": (0.39, 0.37),
    "Flower 1.42 (in-process)": (6.1, 3.9),
}


def prepare(_place: dict, work: dict) -> dict[str, Any]:
    import torch

    from apps.artifacts.store import save_tensors

    artifact = save_tensors(work["store"], {"w": torch.zeros(PARAMETERS)}, "model")
    return {"artifact": artifact, "store": work["store"], "started": time.time(), "ended": time.time()}


def enrol(_place: dict, _work: dict) -> dict[str, Any]:
    shard = {"shard_sha256": "none", "samples": 1, "per_task": {}, "cut": {}}
    return {**shard, "started": time.time(), "ended": time.time()}


def local_train(place: dict, work: dict, _request: dict, base: dict, _shard: dict) -> dict[str, Any]:
    """Return the base model, slightly changed."""
    from apps.artifacts.store import artifact_path, load_tensors, save_tensors
    from apps.base.identity import identity

    now, store = time.time(), Path(work["out"])
    tensors = load_tensors(artifact_path(base["store"], base["artifact"]))
    artifact = save_tensors(store, {"w": tensors["w"] + 1e-3 * (1 + int(place["site"][-2:]) / 100)}, "update")
    return {
        "task_id": identity({**place}),
        "site": place["site"],
        "round": place["round"],
        "base": base["artifact"]["sha256"],
        "artifact": artifact,
        "store": str(store),
        "steps_done": 1,
        "samples": 1,
        "train_s": 0.0,
        "started": now,
        "ended": time.time(),
    }


def evaluate(place: dict, _work: dict, candidate: dict, who: str, *, at: dict) -> dict[str, Any]:
    now = time.time()
    return {
        "who": who,
        "round": place["round"],
        "artifact": candidate["artifact"],
        "tasks": {},
        "mean_loss": 0.0,
        "started": now,
        "ended": now,
    }


def save_model(_place: dict, _work: dict, final: dict, _folder: str) -> dict[str, Any]:
    return {"artifact": final["artifact"], "started": time.time(), "ended": time.time()}


def in_threads(plan: Any, run_dir: Path, memoizer: Any, *_: Any) -> Any:
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor

    labels = [*plan.sites, "server", "evaluator"]
    executors = [ThreadPoolExecutor(label=label, max_threads=1) for label in labels]
    return Config(
        executors=executors,
        memoizer=memoizer,
        run_dir=str(run_dir / "parsl"),
        initialize_logging=False,
        strategy="none",
        usage_tracking=0,
    )


def campaign_of(sites: int, rounds: int) -> Any:
    from workflows.planning.campaign import Campaign

    names = [f"site{i:02d}" for i in range(sites)]
    return Campaign.model_validate(
        {
            "name": "orchestration",
            "rounds": rounds,
            "model": {"source": "tiny", "tiny": {"width": 32, "layers": 1}, "dtype": "float32"},
            "training": {"steps": 1, "learning_rate": 0.1},
            "evaluation": {"every": 1_000_000, "sites": False},
            "sites": {name: {"config": "local", "tasks": ["retrosynthesis"], "data": "embedded"} for name in names},
        }
    )


def rounds_per_second(sites: int, rounds: int, processes: bool) -> float:
    """Run one campaign and return its rounds a second, from the first aggregation to the last."""
    import benchmarks.orchestration as trainer  # the functions by an importable name, for worker processes

    from workflows.dataflow import round as round_module
    from workflows.dataflow.engine import Engine
    from workflows.fl_round import federate
    from workflows.planning.plan import make_plan
    from workflows.records.run_directory import open_new
    from workflows.runtime import kernel as kernel_module
    from workflows.strategies import make_strategy

    names = ("prepare", "enrol", "local_train", "evaluate", "save_model")
    replaced = {name: getattr(trainer, name) for name in names}
    config = kernel_module.make_config if processes else in_threads
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(round_module, **replaced),
        mock.patch.object(kernel_module, "make_config", config),
    ):
        campaign, source = campaign_of(sites, rounds), Path(folder) / "campaign.yaml"
        source.write_text("")
        run = open_new(Path(folder) / "run", campaign, source, [], None)
        plan = make_plan(campaign, run.path, source)
        with kernel_module.parsl_for(plan, run) as kernel:
            engine = Engine(plan, run, kernel, lambda _: None)
            federate(make_strategy(campaign.strategy, rounds, 1), engine)
        moments = [r["time"] for r in run.journal.events("aggregated")]
        run.close()
    return (len(moments) - 1) / (moments[-1] - moments[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--processes", action="store_true", help="tasks in worker processes instead of threads")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"rounds a second, {PARAMETERS:,} parameters, median (min .. max) of {options.repeats} campaigns")
    for sites in options.sites:
        rates = [rounds_per_second(sites, options.rounds, options.processes) for _ in range(options.repeats)]
        print(f"{sites:3d} sites: {statistics.median(rates):6.1f} ({min(rates):.1f} .. {max(rates):.1f})")
        for name, known in OTHERS.items():
            if sites in (4, 16):
                other = known[sites == 16]
                print(f"      {statistics.median(rates) / other:6.1f} x {name}, {other} a second")


if __name__ == "__main__":
    main()
