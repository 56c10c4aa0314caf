"""A site with its storage in a folder, for tests that train there; run as a program, it trains as a worker would.

``python training_site.py JOB.json`` calls ``local_train`` with the arguments in the file and writes the result beside
the file: OUTCOME.json with the manifest or the error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import psutil

from apps.artifacts.manifests import Manifest
from apps.artifacts.store import artifact_path
from apps.base.errors import CrossfedError
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.server import prepare
from apps.train import enrol, local_train
from apps.transfer import stage_out

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(PROJECT), str(PROJECT / "tests"))), "OMP_NUM_THREADS": "1"}
PLACE = Place(site="aurora", round=1)
TRAINING = {
    "steps": 2,
    "batch_size": 2,
    "accumulate": 1,
    "learning_rate": 0.01,
    "schedule": "constant",
    "final_factor": 0.0,
    "warmup_steps": 0,
    "start_step": 0,
    "total_steps": 0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "proximal_mu": 0.0,
    "precision": "no",
    "device": "cpu",
    "keep_optimizer": False,
    "checkpoint_s": 300.0,
    "on_walltime": "finish",
    "until": None,
}
PARALLEL = {
    "nodes": 1,
    "ranks_per_node": 1,
    "sharding": "none",
    "offload": False,
    "checkpoint_activations": False,
    "micro_batch": 8,
    "backend": "gloo",
    "launch": [],
    "interface": "",
}


def bare_environment(folder: Path) -> Path:
    """Create an empty virtual environment, whatever the interpreter of the tests has installed."""
    venv.create(folder, symlinks=True)
    return folder


def model_spec(method: str | None = None, dtype: str = "float32", **changes: Any) -> dict:
    adapter = {"method": method, "rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q_proj"], "last_layers": None}
    return {
        "source": "tiny",
        "dtype": dtype,
        "seed": 1,
        "adapter": adapter | changes if method else None,
        "tiny": {"width": 32, "layers": 1},
    }


def data_spec(**changes: Any) -> dict:
    spec = {
        "source": "embedded",
        "tasks": ["forward_synthesis"],
        "per_task": 6,
        "max_tokens": 48,
        "prompt": "Q: {input}\nA:",
        "loss_on": "answer",
    }
    return spec | changes


class Site:
    """A site with its storage, after enrolment, with the model of round 0 staged out to it."""

    def __init__(self, folder: Path, method: str | None = None, parallel: dict | None = None, **adapter: Any) -> None:
        self.folder, self.root, self.store = folder, folder / "site", str(folder / "server")
        self.work = {
            "root": str(self.root),
            "out": f"{self.root}/out",
            "shared": "",
            "model": model_spec(method, **adapter),
            "data": data_spec(),
            "seed": 3,
            "threads": 1,
            "parallel": PARALLEL | (parallel or {}),
            "code_version": code_version(),
        }
        self.incoming, self.outgoing = f"{self.root}/in", f"{self.root}/out"
        self.shard = enrol(PLACE, self.work)
        server = {"store": self.store, "model": self.work["model"], "threads": 1, "code_version": code_version()}
        self.base = stage_out(PLACE, prepare(Place(site="server", round=0), server), self.store, self.incoming)

    def train(self, place: Place = PLACE, optimizer_from: str | None = None, **changes: Any) -> Manifest:
        return local_train(*self.arguments(place, optimizer_from, **changes))

    def arguments(self, place: Place = PLACE, optimizer_from: str | None = None, **changes: Any) -> tuple:
        request = {"training": TRAINING | changes, "optimizer_from": optimizer_from, "attempt": 1}
        return place, self.work, request, self.base, self.shard

    def start(self, slow_s: float = 0.0, environment: dict | None = None, **changes: Any) -> subprocess.Popen:
        """Train in a process of its own, each step of which takes ``slow_s`` longer."""
        command = self.command(slow_s, **changes)
        return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, **(environment or {})})

    def command(self, slow_s: float = 0.0, **changes: Any) -> list[str]:
        job = self.folder / "job.json"
        job.write_text(json.dumps([slow_s, *self.arguments(**changes)]))
        self.outcome_path.unlink(missing_ok=True)
        return [sys.executable, __file__, str(job)]

    @property
    def outcome_path(self) -> Path:
        return self.folder / "OUTCOME.json"

    def outcome(self) -> dict:
        """Return the result of the last process: a manifest, or the name of an error and its text."""
        return json.loads(self.outcome_path.read_text())

    def update(self, manifest: Manifest) -> Path:
        return artifact_path(self.outgoing, manifest["artifact"])

    def saved_steps(self) -> list[int]:
        return sorted(int(p.name[5:14]) for p in (self.root / "checkpoints").glob("*/step-*.safetensors"))


def ranks_at(site: Site) -> list[psutil.Process]:
    """Return the live processes of the site's ranks and their launcher."""
    found = []
    for process in psutil.process_iter():
        try:
            named = any(str(site.root) in argument for argument in process.cmdline())
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def rank_at(site: Site, number: int) -> psutil.Process:
    """Return the process of one of the site's ranks, where ``rank_server.py`` has forked them."""
    return next(process for process in ranks_at(site) if process.cmdline()[0].split()[0] == f"rank-{number}")


def slow_down(seconds: float) -> None:
    """Make every step of this process take longer."""
    from apps.training import loop as training

    update = training.update_parameters

    def slow(*arguments: Any) -> None:
        time.sleep(seconds)
        update(*arguments)

    training.update_parameters = slow


def main(job: Path) -> None:
    slow_s, *arguments = json.loads(job.read_text())
    slow_down(slow_s)
    try:
        outcome: Any = local_train(*arguments)
    except CrossfedError as error:
        outcome = {"error": type(error).__name__, "text": str(error)}
    job.with_name("OUTCOME.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
