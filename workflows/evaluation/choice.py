"""Choose a global model of a run: the final one, the newest so far, that of a round, or the best by its test loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from apps.artifacts.store import Artifact, artifact_path
from apps.base.errors import UserMistake
from workflows.console.paths import command_line
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import load_campaign
from workflows.records.journal import Record, read_journal
from workflows.records.run_directory import is_finished, resume_hint
from workflows.records.scores import GLOBAL, model_scores


@dataclass(frozen=True)
class ChosenModel:
    """A global model of a run.

    Attributes:
        number: its round, or version; 0 is the model before training.
        file: its artifact at the server; None: the run's folder ``model/``.
    """

    number: int
    file: Path | None = None


@dataclass(frozen=True)
class OpenedRun:
    """A run directory, finished or not, with the global model that was chosen."""

    path: Path
    campaign: Campaign
    chosen: ChosenModel

    @property
    def model_folder(self) -> Path:
        return self.path / "model"

    @property
    def suffix(self) -> str:
        """Return the end of the name of a file about the chosen model; empty for the final model."""
        return f"-{self.campaign.period}-{self.chosen.number}" if self.chosen.file else ""

    @property
    def text(self) -> str:
        """Return the name of the chosen model for the user; empty for the final model."""
        if self.chosen.file is None:
            return ""
        return f"the global model of {self.campaign.period} {self.chosen.number} of {self.campaign.rounds}"


def open_run(path: Path, number: int | None = None, best: bool = False) -> OpenedRun:
    """Open a run and choose a global model: by default the final one or, while there is none, the newest.

    Args:
        path: of the run directory; its driver may be at work.
        number: of a round, or version.
        best: choose the lowest mean test loss.

    Raises:
        UserMistake: not a run directory, or it has no such model; with the remedy.
    """
    if not (path / "campaign.yaml").is_file():
        raise UserMistake(f"{path} is no run directory: it has no campaign.yaml")
    campaign = load_campaign(path / "campaign.yaml")
    if number is None and not best and has_final_model(path):
        return OpenedRun(path, campaign, ChosenModel(campaign.rounds))
    records = run_records(path)
    models = made_models(records)
    if not models and is_finished(path):
        raise UserMistake(f"{path} is finished, but its folder model/ is missing", remedy="Restore it from a copy")
    if not models:
        planned = plural(campaign.rounds, campaign.period)
        raise UserMistake(
            f"{path} has no model yet (0 of {planned} done)",
            remedy=f"Wait while its driver works, or {resume_hint(path)}",
        )
    if best:
        number = best_number(path, records)
    elif number is None:
        number = max(models)
    return OpenedRun(path, campaign, ChosenModel(number, _artifact(path, models, number, campaign.period)))


def has_final_model(path: Path) -> bool:
    return any((path / "model" / name).is_file() for name in ("config.json", "adapter_config.json"))


def run_records(path: Path) -> list[Record]:
    """Return the records of a run's journal; none if it has none."""
    journal = path / "journal.jsonl"
    return list(read_journal(journal)) if journal.exists() else []


def made_models(records: list[Record]) -> dict[int, Artifact]:
    """Return the artifacts of the global models that were made, by round or version; 0 is the first model."""
    made = {"prepare": 0}
    done = [r for r in records if r["event"] == "task_done" and r["app"] in ("prepare", "aggregate")]
    return {r["result"].get("version", made.get(r["app"], r["round"])): r["result"]["artifact"] for r in done}


def best_number(path: Path, records: list[Record]) -> int:
    """Return the round, or version, whose global model has the lowest mean test loss.

    Raises:
        UserMistake: none has been scored.
    """
    scores = [s for s in model_scores(records) if s.model == GLOBAL and math.isfinite(s.mean)]
    if not scores:
        raise UserMistake(f"--best: no global model of {path} has been scored yet", remedy="Choose one by --round N")
    return min(scores, key=lambda score: score.mean).number


def _artifact(path: Path, models: dict[int, Artifact], number: int, period: str) -> Path:
    if number not in models:
        raise UserMistake(f"--round {number}: {path} has the models of {period} {min(models)} to {max(models)}")
    file = artifact_path(path / "artifacts", models[number])
    if not file.is_file():
        raise UserMistake(
            f"the model of {period} {number} is not in {path / 'artifacts'}: it was removed, or the server works "
            "at a site",
            file=str(file),
            remedy=f"Copy it there, or choose another: {command_line('generate.py')} {path} --round N",
        )
    return file
