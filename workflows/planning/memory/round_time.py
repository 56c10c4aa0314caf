"""Estimate how the time of a block divides over the parts of a round, and what share of it is training.

Seconds per gigabyte were measured on one core (hash 0.67, read 0.61, gather, hash and write 2.66); file systems change
them by two, not by ten. Starting the ranks and loading the model are paid once a block, because both stay; transfers,
the queue and the wait for other sites are left out: they depend on these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workflows.console.units import seconds_text
from workflows.planning.memory.estimate import BFLOAT16, FLOAT32, TrainingSetup
from workflows.planning.memory.model import ModelShape

HASH_S, READ_S, WRITE_S = 0.67, 0.61, 2.66  # per GB
START_S = 60.0  # of ranks, with all that they import, from a parallel file system
DATA_S = 1.0  # drawing and encoding the samples of a round
CHECKPOINT_SIZE = 3  # in sizes of the trained tensors: these and two moments
GOAL = 0.8  # share of training


@dataclass(frozen=True)
class RoundTime:
    """Seconds of a site's block in one round after its first.

    Attributes:
        load: verify and read the global model.
        data: draw and encode samples.
        train: all steps.
        save: checkpoints.
        update: gather, hash and write the update.
        once: start of the ranks and first load, once a block.
    """

    load: float
    data: float
    train: float
    save: float
    update: float
    once: float

    @property
    def total(self) -> float:
        """Seconds of the round."""
        return self.load + self.data + self.train + self.save + self.update

    @property
    def share(self) -> float:
        """Fraction of the round that is training."""
        return self.train / self.total


def round_time(
    shape: ModelShape,
    setup: TrainingSetup,
    samples: int,
    samples_per_s: float,
    nodes: int,
    checkpoint_s: float,
    sent_bytes: int = FLOAT32,
) -> RoundTime:
    """Return the estimate for a round of so many samples.

    Args:
        shape: of the model.
        setup: of the training.
        samples: of all steps.
        samples_per_s: speed of the site.
        nodes: of the block; each reads the file once.
        checkpoint_s: seconds between checkpoints.
        sent_bytes: bytes of a number of the models and updates that travel. In bfloat16 a site reads its base and
            writes the change and what rounding leaves over, together as much as a float32 model.
    """
    sent_gb = shape.trained * sent_bytes / 1e9
    trained_gb = shape.trained * (FLOAT32 if shape.adapted else setup.weight_bytes) / 1e9
    base_gb = shape.parameters * setup.weight_bytes / 1e9
    train, price = samples / samples_per_s, CHECKPOINT_SIZE * WRITE_S * trained_gb
    saves = max(0, math.floor((train - price) / checkpoint_s))  # none where the end is nearer than its price
    return RoundTime(
        load=(HASH_S + READ_S) * sent_gb,
        data=DATA_S,
        train=train,
        save=saves * price,
        update=WRITE_S * trained_gb + (READ_S * 2 * sent_gb if sent_bytes == BFLOAT16 else 0),
        once=START_S + READ_S * base_gb * (1 if nodes == 1 else 2),
    )


def steps_for_goal(time: RoundTime, steps: int, rest: float) -> int:
    """Return the number of steps a round with which the goal is reached.

    Args:
        time: of a round of ``steps`` steps.
        steps: of a round now.
        rest: seconds of the round beside training, without checkpoints.
    """
    return math.ceil(GOAL / (1 - GOAL) * rest * steps / time.train)


def describe_round(time: RoundTime, steps: int) -> list[str]:
    """Return the lines that show the parts of a round, the share of training, and what would raise it.

    Args:
        time: of a round.
        steps: of a round.
    """
    parts = {"load": time.load, "data": time.data, "training": time.train, "save": time.save, "update": time.update}
    named = " + ".join(f"{name} {seconds_text(seconds)}" for name, seconds in parts.items() if seconds >= 0.5)
    lines = [
        f"a round of its block: {named} = {seconds_text(time.total)}, {time.share:.0%} of it training (an estimate)"
    ]
    if time.share < GOAL:
        enough = steps_for_goal(time, steps, time.load + time.data + time.update)
        lines.append(f"{GOAL:.0%} of training would take {enough:,} steps a round instead of {steps}, or less to send")
    lines.append(f"once a block: {seconds_text(time.once)} to start ranks and load the model; they stay between rounds")
    return lines
