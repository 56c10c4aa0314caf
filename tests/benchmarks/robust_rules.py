"""What the bounds and the robust rules hold against bad sites, what they cost when all are honest, and their CPU time.

    python tests/benchmarks/robust_rules.py [--seeds 5] [--rounds 30] [--sites 4 8 16] [--cost]

Every cell is the test accuracy in percent, mean and standard deviation over the seeds, after some rounds of real
training of a small network on the handwritten digits (workflows/studies/simulation). A quarter of the sites is bad:

sign flip    sends the opposite of its change
scaling      sends its change times -20
label flip   trains on the label 9 - y
free rider   sends the model back as it came

``alike`` deals the digits out at random. ``by class`` gives each site few classes (Dirichlet 0.1), as where each
facility has tasks of its own. The bounds are the engine's own (workflows/dataflow/norm_bounds.py), the rules those of
apps/artifacts/robust.py. With ``--cost``: CPU seconds of one aggregation of eight files of 1e7 float32 numbers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

PROJECT = Path(__file__).resolve().parents[2]
if TYPE_CHECKING:
    import numpy as np

    from workflows.strategies.base import Aggregate
    from workflows.studies.simulation.digits import Digits

RULES = ("mean, no bounds", "mean, default bounds", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median")
ATTACKS = ("all honest", "sign flip", "scaling", "label flip", "free rider")
SPLITS = {"alike": 100.0, "by class": 0.1}
STEPS = 20
SCALE = 20.0
COST_SITES, COST_NUMBERS, COST_REPEATS = 8, 10_000_000, 3


def spoil(attack: str, base: np.ndarray, honest: np.ndarray) -> np.ndarray:
    """Return what a bad site sends instead of its model; ``label flip`` has spoilt the training already."""
    match attack:
        case "sign flip":
            return 2 * base - honest
        case "scaling":
            return base - SCALE * (honest - base)
        case "free rider":
            return base
    return honest


class Server:
    """The aggregation of one rule over the rounds of a campaign."""

    def __init__(self, rule: str, bad: int, first: np.ndarray) -> None:
        from workflows.dataflow.norm_bounds import NormBounds
        from workflows.planning.campaign import ChecksSection

        off = {"clip_to_median": None, "refuse_beyond": None}
        self.rule, self.bad = rule, bad
        self.bounds = NormBounds(ChecksSection(**off if rule != RULES[1] else {}), True, STEPS)
        self.norm = float((first.astype(float) ** 2).sum() ** 0.5)
        self.ratios: list[float] = []  # of the largest norm of a round to its median
        self.clipped = 0

    def next_model(self, number: int, base: np.ndarray, sent: Sequence[np.ndarray]) -> np.ndarray:
        """Return the model after a round, from what the sites have sent."""
        from workflows.strategies.base import Train, UpdateArrived
        from workflows.studies.simulation.server import combined

        norms = [float(((x - base).astype(float) ** 2).sum() ** 0.5) for x in sent]
        self.ratios.append(max(norms) / (statistics.median(norms) or 1.0))
        kept = []
        for site, norm in enumerate(norms):
            task, name = number * len(sent) + site, f"site{site}"
            request = Train(task, name, number, number + 1)
            if self.bounds.refusal(request, norm, self.norm) is None:
                arrived = UpdateArrived(0.0, name, task, "", STEPS, 1, 1.0, 0.0, norm=norm)
                self.bounds.remember(arrived, request)
                kept.append((task, sent[site]))
        action = self._action(number, [task for task, _ in kept])
        clips = self.bounds.clips(action)
        self.clipped += sum(clip.factor < 1 for clip in clips.values())
        updates = {task: base + clips[task].factor * (x - base) for task, x in kept}
        return combined(action, {number: base}, updates)

    def _action(self, number: int, tasks: Sequence[int]) -> Aggregate:
        from workflows.strategies.base import Aggregate, RobustRule

        rule: Any = None if self.rule.startswith("mean") else RobustRule(self.rule, self.bad)  # type: ignore[arg-type]
        return Aggregate(number + 1, number, tuple((task, 1 / len(tasks)) for task in tasks), robust=rule)


def accuracy(rule: str, attack: str, problem: Digits, bad: int, rounds: int) -> tuple[float, Server]:
    """Return the test accuracy after some rounds, in percent, and the server with its counts."""
    from workflows.studies.simulation.problem import LocalWork

    shards = list(problem.shards)
    if attack == "label flip":
        problem.shards[:bad] = [(inputs, 9 - labels) for inputs, labels in shards[:bad]]
    model = problem.first()
    server = Server(rule, bad, model)
    for number in range(rounds):
        trained = [problem.train(model, LocalWork(site, number, STEPS)) for site in range(len(shards))]
        sent = [spoil(attack if site < bad else "", model, x) for site, x in enumerate(trained)]
        model = server.next_model(number, model, sent)
    problem.shards[:] = shards
    return 100 * problem.score(model).accuracy, server


def fits(rule: str, sites: int, bad: int) -> bool:
    from workflows.strategies.robust import misfit

    return rule.startswith("mean") or misfit(rule, bad, sites, None) is None  # type: ignore[arg-type]


def spread(values: Sequence[float]) -> str:
    """Return the mean and the sample's standard deviation, as Markdown."""
    return f"{statistics.mean(values):.0f} ± {statistics.stdev(values) if len(values) > 1 else 0:.0f}"


def table(split: str, counts: Sequence[int], seeds: int, rounds: int) -> None:
    """Print the rows of one split of the digits."""
    from workflows.studies.simulation.digits import Digits

    print(f"\n{split}\n\n| sites | rule | {' | '.join(ATTACKS)} |\n|{' --- |' * (len(ATTACKS) + 2)}")
    notes = []
    for sites in counts:
        bad = max(1, sites // 4)
        problems = [Digits(sites, SPLITS[split], seed) for seed in range(seeds)]
        for rule in (rule for rule in RULES if fits(rule, sites, bad)):
            found = {a: [accuracy(rule, a, problem, bad, rounds) for problem in problems] for a in ATTACKS}
            cells = [spread([value for value, _ in pairs]) for pairs in found.values()]
            print(f"| {sites}, {bad} bad | {rule} | {' | '.join(cells)} |", flush=True)
            if rule == RULES[1]:
                notes.append(norms_text(sites, rounds, [server for _, server in found[ATTACKS[0]]]))
    print("\n" + "\n".join(notes))


def norms_text(sites: int, rounds: int, servers: Sequence[Server]) -> str:
    """Return how far norms differ, and how many updates the default bound scales down, where all are honest."""
    ratios = [ratio for server in servers for ratio in server.ratios]
    clipped = sum(server.clipped for server in servers) / (len(servers) * rounds * sites)
    told = f"largest norm of a round / median: median {statistics.median(ratios):.2f}, most {max(ratios):.2f}"
    return f"{sites} sites, all honest: {told}; {clipped:.1%} of the updates scaled down"


def cost() -> None:
    """Print the CPU seconds of one aggregation by each rule."""
    import torch

    from apps.aggregate import clipped_terms
    from apps.artifacts.robust import COORDINATE_RULES, RobustSpec, coefficients, coordinatewise, gram_matrix
    from apps.artifacts.store import artifact_path, save_tensors
    from apps.artifacts.traffic import model_terms
    from apps.artifacts.weighted_sum import affine_combination, weighted_sum

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        base = save_tensors(folder, {"w": torch.randn(COST_NUMBERS, generator=draw)}, "model")
        results: list[dict[str, Any]] = []
        for _ in range(COST_SITES):
            artifact = save_tensors(folder, {"w": torch.randn(COST_NUMBERS, generator=draw)}, "update")
            results.append({"artifact": artifact, "base": base})
        before = artifact_path(folder, base)
        files = [artifact_path(folder, result["artifact"]) for result in results]
        terms = [(result, 1 / COST_SITES) for result in results]

        def robust(name: str) -> None:
            spec = RobustSpec(name=name, bad=2)
            if name in COORDINATE_RULES:
                coordinatewise(files, before, spec, folder, "model")
            else:
                factors = coefficients(gram_matrix(files, before), spec)
                weighted_sum([(path, factor) for path, factor in zip(files, factors, strict=True) if factor], folder)

        clips = [1.0] * (COST_SITES - 1) + [0.5]
        methods: dict[str, Callable[[], Any]] = {
            "mean": lambda: weighted_sum(model_terms(folder, terms), folder),
            "mean, one scaled down": lambda: affine_combination(
                model_terms(folder, clipped_terms(terms, clips)), before, folder
            ),
            **{name: lambda name=name: robust(name) for name in RULES[2:]},  # type: ignore[misc]
        }
        seconds = {name: min(measured(act) for _ in range(COST_REPEATS)) for name, act in methods.items()}
    print(f"\nCPU seconds of one aggregation, {COST_SITES} files of {COST_NUMBERS:,} float32, one thread")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / seconds['mean']:.1f} |")


def measured(act: Callable[[], Any]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(PROJECT))
    import numpy as np

    if options.cost:
        cost()
        return
    with np.errstate(over="ignore", invalid="ignore"):  # a model that diverges scores as chance
        for split in SPLITS:
            table(split, options.sites, options.seeds, options.rounds)


if __name__ == "__main__":
    main()
