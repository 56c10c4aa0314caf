"""The default problem: the handwritten digits of scikit-learn, split over sites by a Dirichlet draw over classes.

1,797 pictures of 8 x 8; a fifth is the common test set, the classes take the part of tasks.
Source: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.partition import dirichlet_split
from data.tasks import Record
from workflows.studies.simulation.mlp import Layout, descend, forward, initial
from workflows.studies.simulation.problem import LocalWork, ModelScore

if TYPE_CHECKING:
    import numpy as np

LAYOUT = Layout(64, 32, 10)
LEAST_SAMPLES = 16  # of a site; draws that give a site fewer are repeated
SEVEN_BILLION = 13.5e9  # bytes in bfloat16: the model whose transfers are simulated


class Digits:
    """Real training on the digits."""

    def __init__(
        self, sites: int, alpha: float, seed: int, rate: float = 0.1, batch: int = 16, nbytes: float = SEVEN_BILLION
    ) -> None:
        import numpy as np

        train, self.test = split_digits(seed)
        self.seed, self.rate, self.batch, self.nbytes = seed, rate, batch, nbytes
        self.shards = [(train[0][rows], train[1][rows]) for rows in split_rows(train[1], sites, alpha, seed)]
        self.samples = tuple(len(labels) for _, labels in self.shards)
        self.one_hot = np.eye(LAYOUT.classes, dtype=np.float32)

    def first(self) -> np.ndarray:
        return initial(LAYOUT, self.seed)

    def train(self, model: np.ndarray, work: LocalWork, correction: np.ndarray | None = None) -> np.ndarray:
        import numpy as np

        inputs, labels = self.shards[work.site]
        draw = np.random.default_rng([self.seed, work.site, work.round])
        rows = draw.integers(0, len(labels), (work.steps, self.batch))
        batches = (inputs[rows], self.one_hot[labels[rows]])
        return descend(LAYOUT, model, batches, self.rate * work.rate_factor, work.proximal_mu, correction)

    def score(self, model: np.ndarray) -> ModelScore:
        import numpy as np

        inputs, labels = self.test
        logs = forward(LAYOUT, model, inputs)
        losses = -logs[np.arange(len(labels)), labels].astype(np.float64)
        tasks = tuple(float(losses[labels == label].mean()) for label in range(LAYOUT.classes))
        return ModelScore(float(losses.mean()), float((logs.argmax(1) == labels).mean()), tasks)


def split_digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return (inputs float32 in 0..1, labels) for training and, a fifth of each class, for the test."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    inputs, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        (inputs / 16).astype(np.float32), labels.astype(np.int64), test_size=0.2, random_state=seed, stratify=labels
    )
    return (parts[0], parts[2]), (parts[1], parts[3])


def split_rows(labels: np.ndarray, sites: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Return the row numbers of each site.

    The first draw that gives every site enough samples is used; otherwise the best of a hundred, whose smallest sites
    then get some rows of the largest.
    """
    import numpy as np

    records: list[Record] = [Record(task=str(label), row=row) for row, label in enumerate(labels)]  # type: ignore
    names = [str(number) for number in range(sites)]
    best: list[list[int]] = []
    for attempt in range(100):
        dealt = dirichlet_split(records, names, alpha, seed * 1000 + attempt)
        rows = [[record["row"] for record in dealt[name]] for name in names]  # type: ignore[typeddict-item]
        if not best or min(map(len, rows)) > min(map(len, best)):
            best = rows
        if min(map(len, best)) >= LEAST_SAMPLES:
            break
    for shard in best:
        largest = max(best, key=len)
        while len(shard) < LEAST_SAMPLES < len(largest):
            shard.append(largest.pop())
    return [np.array(rows) for rows in best]
