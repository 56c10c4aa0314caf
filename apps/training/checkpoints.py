"""Step checkpoints: the state that an interrupted training needs to continue as if it had not been interrupted.

One file per checkpoint, ``checkpoints/TASK/step-N.SHA256.safetensors``: trained tensors, AdamW's moments, the random
state of every rank, and the training state as JSON. The newest is kept until the task's manifest is written.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from apps.artifacts.store import artifact_path, read_header, sha256_file
from apps.artifacts.streams import read_tensor
from apps.base.files import inside, write_json
from apps.models.sharding import copy_from_file, placed_like
from apps.ranks.process_group import ProcessGroup
from apps.training.save_rate import record_save

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
FOLDER = "checkpoints"
RECORD_FILE = "diary.json"
STATE = "standing"  # name of the JSON among the tensors


@dataclass
class TrainingState:
    """State of a training over all its attempts; losses in nats, ``seconds`` of training alone.

    ``positions`` are the tokens with the padding.
    """

    steps: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


class AttemptRecord(TypedDict):
    """Record of the attempts at a task, which the next attempt reads."""

    round: int
    attempts: int  # how often the task was started
    step_s: float
    save_s: float


class Checkpoints:
    """The checkpoints of one task at a site; ``spent_s`` is the time of those that this attempt has written."""

    def __init__(self, root: Path, task_id: str, round: int) -> None:
        self.root, self.folder = root, inside(root, FOLDER, task_id)
        self.round, self.spent_s = round, 0.0

    def begin(self) -> AttemptRecord:
        """Count a new attempt and return the record."""
        record = self.record()
        record["attempts"] += 1
        write_json(self.folder / RECORD_FILE, record)
        return record

    def record(self) -> AttemptRecord:
        """Return the record of the attempts so far; an empty one if it cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder / RECORD_FILE).read_text())
        return AttemptRecord(round=self.round, attempts=0, step_s=0.0, save_s=0.0)

    def record_times(self, step_s: float, save_s: float) -> None:
        """Write the durations of a step and of a save into the record."""
        write_json(self.folder / RECORD_FILE, {**self.record(), "step_s": step_s, "save_s": save_s})

    def save(self, group: ProcessGroup, state: TrainingState, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint, then remove the older ones; all ranks take part.

        Args:
            group: the ranks.
            state: of the training.
            tensors: trained tensors and moments by name, sharded or not.

        Raises:
            StorageError: the storage cannot be written.
        """
        import torch

        text = torch.frombuffer(bytearray(json.dumps(asdict(state)).encode()), dtype=torch.uint8)
        began = time.monotonic()
        artifact = group.write(self.folder, {**tensors, STATE: text, **_random_states(group)}, "checkpoint")
        if artifact is None:
            return
        seconds = time.monotonic() - began
        self.spent_s += seconds
        record_save(self.root, artifact["nbytes"], seconds)
        path = self.folder / f"step-{state.steps:09d}.{artifact['sha256']}.safetensors"
        os.replace(artifact_path(self.folder, artifact), path)
        for other in self.folder.glob("*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole; damaged ones are renamed."""
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            if sha256_file(path) == path.name.split(".")[1]:
                return path
            logger.warning("checkpoint %s is damaged and is not used", path)
            os.replace(path, path.with_suffix(".damaged"))
        return None

    def discard(self) -> None:
        """Remove the task's checkpoints, and those of earlier rounds, which will not be needed again."""
        for folder in self.folder.parent.iterdir():
            try:
                past = json.loads((folder / RECORD_FILE).read_text())["round"] < self.round
            except (OSError, ValueError, KeyError):
                past = True
            if past or folder == self.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _random_states(group: ProcessGroup) -> dict[str, torch.Tensor]:
    """Return the random states of all ranks, including those of their devices."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if group.device != "cpu":
        states["device"] = torch.get_device_module(group.device).get_rng_state(group.device)
    return {
        f"random/{name}/{rank}": state for name, own in states.items() for rank, state in enumerate(group.gather(own))
    }


def restore(path: Path, group: ProcessGroup, trained: Mapping[str, torch.Tensor], optimizer: Any) -> TrainingState:
    """Load a checkpoint into a model and its optimiser, and set the random state of this rank.

    Args:
        path: of a whole checkpoint.
        group: the ranks.
        trained: artifact name -> the tensor inside the network.
        optimizer: AdamW over these tensors.

    Returns:
        The state of the training.
    """
    import torch

    header = read_header(path)
    with torch.no_grad():
        for name, parameter in trained.items():
            copy_from_file(parameter, path, header[name])
            if f"{name}/step" in header:
                found = {key: read_tensor(path, header[f"{name}/{key}"]) for key in ("step", "exp_avg", "exp_avg_sq")}
                set_moments(optimizer, parameter, found)
    torch.set_rng_state(read_tensor(path, header[f"random/cpu/{group.rank}"]))
    if group.device != "cpu":
        state = read_tensor(path, header[f"random/device/{group.rank}"])
        torch.get_device_module(group.device).set_rng_state(state, group.device)
    return TrainingState(**json.loads(bytes(read_tensor(path, header[STATE]).tolist())))


def set_moments(optimizer: Any, parameter: torch.Tensor, whole: Mapping[str, torch.Tensor]) -> None:
    """Set AdamW's moments of one tensor.

    Args:
        optimizer: AdamW.
        parameter: the tensor, sharded or not.
        whole: ``step``, ``exp_avg`` and ``exp_avg_sq``, not sharded.
    """
    optimizer.state[parameter] = {
        "step": whole["step"],  # stays on the CPU, where AdamW keeps it
        **{key: placed_like(whole[key], parameter) for key in ("exp_avg", "exp_avg_sq")},
    }
