"""The strategies of an algorithm study, each with the best of its settings.

The settings come from tests/benchmarks/strategy_grid.py: sixteen for every strategy, ours among them, in the built-in
queues with 4 sites and Dirichlet 0.1, on seeds from 1000 on, and never on a trace: replayed queues use the settings of
bursty ones.
"""

from __future__ import annotations

import json
from typing import Any

from workflows.studies.simulation.scenarios import Scenario

OURS = "fedecho"
Setting = tuple[int, dict[str, Any]]  # local steps of a request, keys of the strategy's section
ABLATIONS: dict[str, dict[str, Any]] = {  # each idea of ours switched off, with the other settings unchanged
    "fedecho-no-memory": {"memory": False},
    "fedecho-kappa-0": {"kappa": 0.0},
    "fedecho-kappa-1": {"kappa": 1.0},
    "fedecho-one-word": {"words": 1},
    "fedecho-no-gather": {"gather": False},
    "fedecho-no-momentum": {"momentum": False},
    "fedecho-no-late-binding": {"late_binding": False},
    "fedecho-no-early": {"early": False},
    "fedecho-no-stretch": {"stretch": False},
    "fedecho-no-fit": {"fit": False},
}
PUBLISHED: dict[str, Setting] = {  # Figure 3 of arXiv 2603.19544, as far as its settings are known (APPFL)
    "fedavg-published": (30, {"weights": "equal"}),
    "fedasync-published": (30, {"alpha": 0.225}),  # 0.9, which APPFL divides by the four sites
    "fedbuff-published": (30, {"buffer": 3, "rate": 0.675}),  # 0.225 an update
    "fedcompass-published": (30, {"alpha": 0.9, "min_steps": 20, "max_steps": 100}),
}
TUNED: dict[Scenario, dict[str, Setting]] = {
    "calm": {
        "fedavg": (5, {"weights": "samples"}),
        "fedprox": (5, {"mu": 0.01}),
        "fedavgm": (2, {"beta": 0.8, "rate": 3.0}),
        "fedadagrad": (2, {"rate": 0.1, "tau": 0.01}),
        "fedadam": (2, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (2, {"rate": 0.03, "tau": 0.001}),
        "fednova": (5, {"weights": "samples"}),
        "scaffold": (10, {"weights": "equal"}),
        "diloco": (2, {"mu": 0.9, "rate": 1.0}),
        "fedasync": (5, {"alpha": 0.9}),
        "fedbuff": (5, {"buffer": 2, "momentum": 0.0, "rate": 2.0}),
        "area": (5, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 1.0, "min_steps": 2, "max_steps": 10}),
        "fedqueue": (40, {"window_s": 900.0, "warm_steps": 20, "weights": "equal"}),
        "fedecho": (2, {"kappa": 0.005, "rate": 3.0}),
    },
    "lognormal": {
        "fedavg": (70, {"weights": "samples"}),
        "fedprox": (70, {"mu": 0.01}),
        "fedavgm": (100, {"beta": 0.5, "rate": 2.0}),
        "fedadagrad": (20, {"rate": 0.1, "tau": 0.01}),
        "fedadam": (20, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (20, {"rate": 0.03, "tau": 0.001}),
        "fednova": (70, {"weights": "samples"}),
        "scaffold": (70, {"weights": "samples"}),
        "diloco": (100, {"mu": 0.9, "rate": 1.0}),
        "fedasync": (5, {"alpha": 0.9}),
        "fedbuff": (5, {"buffer": 2, "momentum": 0.0, "rate": 2.0}),
        "area": (40, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 1.0, "min_steps": 2, "max_steps": 10}),
        "fedqueue": (40, {"window_s": 14400.0, "warm_steps": 5, "weights": "equal"}),
        "fedecho": (2, {"kappa": 0.0025, "rate": 2.0}),
    },
    "bursty": {
        "fedavg": (70, {"weights": "samples"}),
        "fedprox": (70, {"mu": 0.01}),
        "fedavgm": (100, {"beta": 0.5, "rate": 2.0}),
        "fedadagrad": (20, {"rate": 0.1, "tau": 0.01}),
        "fedadam": (20, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (20, {"rate": 0.03, "tau": 0.001}),
        "fednova": (70, {"weights": "samples"}),
        "scaffold": (100, {"weights": "equal"}),
        "diloco": (100, {"mu": 0.9, "rate": 1.0}),
        "fedasync": (10, {"alpha": 0.9}),
        "fedbuff": (5, {"buffer": 2, "momentum": 0.0, "rate": 2.0}),
        "area": (100, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 1.0, "min_steps": 2, "max_steps": 10}),
        "fedqueue": (40, {"window_s": 14400.0, "warm_steps": 20, "weights": "equal"}),
        "fedecho": (10, {"kappa": 0.0025, "rate": 2.0}),
    },
}
CONTESTANTS = tuple(TUNED["bursty"])
KNOWN = (*CONTESTANTS, *ABLATIONS, *PUBLISHED)


def setting_of(name: str, scenario: Scenario) -> tuple[int, str]:
    """Return the steps of a request, and the strategy's section as JSON."""
    if name in PUBLISHED:
        steps, keys = PUBLISHED[name]
        return steps, json.dumps({"name": name.removesuffix("-published"), **keys})
    regime: Scenario = "bursty" if scenario == "replay" else scenario
    strategy = OURS if name in ABLATIONS else name
    steps, keys = TUNED[regime][strategy]
    return steps, json.dumps({"name": strategy, **keys, **ABLATIONS.get(name, {})})
