"""Small campaigns for tests, run as a user would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from patience import patience

PROJECT = Path(__file__).resolve().parent.parent
FL_ROUND = PROJECT / "workflows" / "fl_round.py"


def nano(**changes: Any) -> dict[str, Any]:
    """Return a campaign of two sites, a model of about ten thousand parameters, and rounds of less than a second."""
    campaign: dict[str, Any] = {
        "name": "nano",
        "seed": 3,
        "rounds": 3,
        "model": {"source": "tiny", "tiny": {"width": 32, "layers": 1}},
        "data": {"per_task": 20, "tasks": ["chemical_reaction", "molecule_description"]},
        "strategy": {"name": "fedavg", "weights": "samples"},
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.003},
        "evaluation": {"per_task": 1},
        "sites": {
            "aurora": {"config": "local", "tasks": ["chemical_reaction"]},
            "frontier": {"config": "local", "tasks": ["molecule_description"]},
        },
    }
    return campaign | changes


def write_campaign(folder: Path, **changes: Any) -> Path:
    path = folder / "nano.yaml"
    path.write_text(yaml.safe_dump(nano(**changes)))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(FL_ROUND), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}


def run(folder: Path, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run ``fl_round.py`` in a folder and wait for its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        umask=0o022,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=patience(timeout),
        check=False,
    )


def journal(run_dir: Path, *events: str) -> list[dict[str, Any]]:
    """Return the complete records of a run's journal, of these kinds if any are named; none without a journal."""
    path = run_dir / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [r for r in records if not events or r["event"] in events]


def tasks_done(run_dir: Path, app: str) -> list[dict[str, Any]]:
    return [r for r in journal(run_dir, "task_done") if r["app"] == app]


def open_to_others(*folders: Path) -> list[str]:
    """Return the files and folders, with these folders themselves, that other users of the machine may read."""
    found = [path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return [str(path) for path in found if path.stat().st_mode & 0o077 and not path.is_socket()]


def final_hash(run_dir: Path) -> str:
    """Return the SHA-256 of the last global model."""
    made = tasks_done(run_dir, "aggregate")
    return max(made, key=lambda r: r["result"]["version"])["result"]["artifact"]["sha256"]
