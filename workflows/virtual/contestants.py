"""The strategies of a study, each with the best of its settings.

The baselines' settings come from a small grid each (tests/benchmarks/strategy_grid.py, five seeds from 1000 on), in the
built-in queues and never on a trace: replayed queues are met with the settings of bursty ones. Not from that grid: the
10 steps of fedavgm and diloco in calm queues, and all of fedecho, of which many more variants were tried. The grid ran
before failed tasks were done again, so that synchronous campaigns ended early in it: it is due to be run anew.
"""

from __future__ import annotations

import json
from typing import Any

from workflows.virtual.scenarios import Scenario

OURS = "fedecho"
Setting = tuple[int, dict[str, Any]]  # local steps an order, keys of the strategy's section
COMMON: dict[str, Setting] = {
    "fedavg": (100, {}),
    "fedprox": (100, {"mu": 0.01}),
    "fedavgm": (40, {"beta": 0.5}),
    "fedadagrad": (40, {"rate": 0.03, "tau": 0.01}),
    "fedadam": (40, {"rate": 0.03, "tau": 0.01}),
    "fedyogi": (40, {"rate": 0.03, "tau": 0.01}),
    "fednova": (100, {}),
    "scaffold": (100, {}),
    "diloco": (40, {}),
    "fedasync": (40, {"alpha": 0.5}),
    "fedbuff": (40, {"buffer": 2}),
    "area": (40, {}),
    "fedcompass": (40, {}),
    "fedqueue": (40, {"window_s": 14400.0}),
    "fedecho": (10, {}),
}
CONTESTANTS = tuple(COMMON)
ABLATIONS: dict[str, dict[str, Any]] = {  # each idea of ours switched off, the other settings as they are
    "fedecho-no-memory": {"memory": False},
    "fedecho-kappa-0": {"kappa": 0.0},
    "fedecho-kappa-1": {"kappa": 1.0},
    "fedecho-no-gather": {"gather": False},
    "fedecho-no-momentum": {"momentum": False},
    "fedecho-no-crowd": {"crowd": 0.0},
    "fedecho-no-late-binding": {"late_binding": False},
    "fedecho-no-early": {"early": False},
    "fedecho-no-fit": {"fit": False},
}
KNOWN = (*CONTESTANTS, *ABLATIONS)
TUNED: dict[Scenario, dict[str, Setting]] = {
    "calm": {
        "fedavg": (10, {}),
        "fedprox": (20, {"mu": 0.01}),
        "fedavgm": (10, {"beta": 0.8}),
        "fedadagrad": (40, {"rate": 0.03, "tau": 0.001}),
        "fedadam": (40, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (40, {"rate": 0.03, "tau": 0.001}),
        "fednova": (20, {}),
        "scaffold": (20, {}),
        "diloco": (10, {"mu": 0.9}),
        "fedasync": (20, {"alpha": 0.6}),
        "fedbuff": (20, {"buffer": 2, "momentum": 0.0}),
        "area": (20, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 0.9, "min_steps": 5, "max_steps": 40}),
        "fedqueue": (40, {"window_s": 1800.0, "weights": "equal"}),
    },
    "lognormal": {
        "fedavg": (40, {}),
        "fedprox": (40, {"mu": 0.01}),
        "fedavgm": (40, {"beta": 0.8}),
        "fedadagrad": (40, {"rate": 0.03, "tau": 0.001}),
        "fedadam": (40, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (40, {"rate": 0.03, "tau": 0.001}),
        "fednova": (40, {}),
        "scaffold": (100, {}),
        "diloco": (40, {"mu": 0.9}),
        "fedasync": (20, {"alpha": 0.6}),
        "fedbuff": (20, {"buffer": 2, "momentum": 0.5}),
        "area": (20, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 0.9, "min_steps": 5, "max_steps": 40}),
        "fedqueue": (40, {"window_s": 14400.0, "weights": "equal"}),
    },
    "bursty": {
        "fedavg": (100, {}),
        "fedprox": (100, {"mu": 0.01}),
        "fedavgm": (100, {"beta": 0.5}),
        "fedadagrad": (40, {"rate": 0.03, "tau": 0.001}),
        "fedadam": (40, {"rate": 0.03, "tau": 0.001}),
        "fedyogi": (40, {"rate": 0.03, "tau": 0.001}),
        "fednova": (100, {}),
        "scaffold": (100, {}),
        "diloco": (40, {"mu": 0.9}),
        "fedasync": (20, {"alpha": 0.6}),
        "fedbuff": (20, {"buffer": 2, "momentum": 0.5}),
        "area": (20, {"buffer": 1}),
        "fedcompass": (40, {"alpha": 0.9, "min_steps": 10, "max_steps": 40}),
        "fedqueue": (40, {"window_s": 14400.0, "weights": "steps"}),
    },
}


def setting_of(name: str, scenario: Scenario) -> tuple[int, str]:
    """Steps an order, and the section as JSON."""
    regime: Scenario = "bursty" if scenario == "replay" else scenario
    strategy = OURS if name in ABLATIONS else name
    steps, keys = TUNED[regime].get(strategy) or COMMON[strategy]
    return steps, json.dumps({"name": strategy, **keys, **ABLATIONS.get(name, {})})
