"""Step checkpoints: what a training that is broken off needs to go on as if nothing had happened.

One file a checkpoint, ``checkpoints/TASK/step-N.SHA256.safetensors``: trained tensors, AdamW's moments, the state of
every rank's random numbers, and the standing as JSON. The newest is kept until the task's manifest is written.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from apps.artifacts.store import artifact_path, read_header, sha256_file
from apps.artifacts.streams import read_tensor
from apps.base.files import inside, write_json
from apps.ranks.process_group import ProcessGroup, placed_like

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
FOLDER = "checkpoints"
STANDING = "standing"  # the name of the JSON among the tensors


@dataclass
class TrainingState:
    """How far a training is, over all its attempts; losses in nats, ``seconds`` of training alone."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


class AttemptRecord(TypedDict):
    """What the attempts at a task tell the next one."""

    round: int
    attempts: int  # how often it was begun
    step_s: float
    save_s: float


class Checkpoints:
    """The checkpoints of one task at a site."""

    def __init__(self, root: Path, task_id: str, round: int) -> None:
        self.folder, self.round = inside(root, FOLDER, task_id), round

    def begin(self) -> AttemptRecord:
        """Note that the task is begun once more."""
        diary = self.diary()
        diary["attempts"] += 1
        write_json(self.folder / "diary.json", diary)
        return diary

    def diary(self) -> AttemptRecord:
        with suppress(OSError, ValueError):
            return json.loads((self.folder / "diary.json").read_text())
        return AttemptRecord(round=self.round, attempts=0, step_s=0.0, save_s=0.0)

    def note(self, step_s: float, save_s: float) -> None:
        """How long a step and a save take."""
        write_json(self.folder / "diary.json", {**self.diary(), "step_s": step_s, "save_s": save_s})

    def save(self, team: ProcessGroup, standing: TrainingState, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint, then remove the older ones; all ranks take part.

        Raises:
            StorageError: the storage cannot be written.
        """
        import torch

        text = torch.frombuffer(bytearray(json.dumps(asdict(standing)).encode()), dtype=torch.uint8)
        artifact = team.write(self.folder, {**tensors, STANDING: text, **_random_states(team)}, "checkpoint")
        if artifact is None:
            return
        path = self.folder / f"step-{standing.steps:09d}.{artifact['sha256']}.safetensors"
        os.replace(artifact_path(self.folder, artifact), path)
        for other in self.folder.glob("*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are set aside."""
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            if sha256_file(path) == path.name.split(".")[1]:
                return path
            logger.warning("checkpoint %s is damaged and set aside", path)
            os.replace(path, path.with_suffix(".damaged"))
        return None

    def discard(self) -> None:
        """Remove the task's checkpoints, and those of earlier rounds that nobody will ask for again."""
        for folder in self.folder.parent.iterdir():
            try:
                past = json.loads((folder / "diary.json").read_text())["round"] < self.round
            except (OSError, ValueError, KeyError):
                past = True
            if past or folder == self.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _random_states(team: ProcessGroup) -> dict[str, torch.Tensor]:
    """The state of the random numbers of every rank, those of its device included."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if team.device != "cpu":
        states["device"] = torch.get_device_module(team.device).get_rng_state(team.device)
    return {
        f"random/{name}/{rank}": state for name, own in states.items() for rank, state in enumerate(team.gathered(own))
    }


def restore(path: Path, team: ProcessGroup, trained: Mapping[str, torch.Tensor], optimizer: Any) -> TrainingState:
    """Put a checkpoint into a model and its optimiser, and set the random numbers of this rank.

    Args:
        path: a whole checkpoint.
        trained: artifact name -> the tensor inside the network.
        optimizer: AdamW over these tensors.
    """
    import torch

    header = read_header(path)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(placed_like(read_tensor(path, header[name]), parameter))
            if f"{name}/step" in header:
                found = {key: read_tensor(path, header[f"{name}/{key}"]) for key in ("step", "exp_avg", "exp_avg_sq")}
                set_moments(optimizer, parameter, found)
    torch.set_rng_state(read_tensor(path, header[f"random/cpu/{team.rank}"]))
    if team.device != "cpu":
        state = read_tensor(path, header[f"random/device/{team.rank}"])
        torch.get_device_module(team.device).set_rng_state(state, team.device)
    return TrainingState(**json.loads(bytes(read_tensor(path, header[STANDING]).tolist())))


def set_moments(optimizer: Any, parameter: torch.Tensor, whole: Mapping[str, torch.Tensor]) -> None:
    """Give AdamW the moments of one tensor."""
    optimizer.state[parameter] = {
        "step": whole["step"],  # stays on the CPU, where AdamW keeps it
        **{key: placed_like(whole[key], parameter) for key in ("exp_avg", "exp_avg_sq")},
    }
