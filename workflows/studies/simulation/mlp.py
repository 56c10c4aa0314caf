"""A small network in plain NumPy: 64 inputs, ReLU, softmax, plain SGD. A step takes some tens of microseconds.

The model is one float32 vector: W1 (inputs x hidden), b1, W2 (hidden x classes), b2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Layout:
    """Sizes of the layers and their places in the vector."""

    inputs: int
    hidden: int
    classes: int

    @property
    def size(self) -> int:
        return (self.inputs + 1) * self.hidden + (self.hidden + 1) * self.classes

    def views(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return W1, b1, W2, b2 as views."""
        a = self.inputs * self.hidden
        b, c = a + self.hidden, a + self.hidden + self.hidden * self.classes
        w1 = vector[:a].reshape(self.inputs, self.hidden)
        return w1, vector[a:b], vector[b:c].reshape(self.hidden, self.classes), vector[c:]


def initial(layout: Layout, seed: int) -> np.ndarray:
    """Return a model with He's normal initialisation and zero biases."""
    import numpy as np

    draw, vector = np.random.default_rng([seed, 7]), np.zeros(layout.size, np.float32)
    w1, _, w2, _ = layout.views(vector)
    w1[:] = draw.standard_normal(w1.shape) * (2 / layout.inputs) ** 0.5
    w2[:] = draw.standard_normal(w2.shape) * (2 / layout.hidden) ** 0.5
    return vector


def log_softmax(scores: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def forward(layout: Layout, vector: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (samples x classes)."""
    import numpy as np

    w1, b1, w2, b2 = layout.views(vector)
    return log_softmax(np.maximum(inputs @ w1 + b1, 0.0) @ w2 + b2)


def descend(
    layout: Layout,
    start: np.ndarray,
    batches: tuple[np.ndarray, np.ndarray],
    rate: float,
    mu: float = 0.0,
    correction: np.ndarray | None = None,
) -> np.ndarray:
    """Return the model after SGD over batches, one step each; the start is not changed.

    Args:
        layout: sizes of the model's layers.
        start: the model; with ``mu`` also the centre of the proximal term mu/2 ||x - start||^2.
        batches: inputs (steps, batch, inputs) float32 and one-hot labels (steps, batch, classes) float32.
        rate: learning rate.
        mu: factor of the proximal term.
        correction: added to every gradient.
    """
    import numpy as np

    vector, gradient = start.copy(), np.empty_like(start)
    w1, b1, w2, b2 = layout.views(vector)
    g1, c1, g2, c2 = layout.views(gradient)
    share = np.float32(1 / batches[0].shape[1])
    for x, y in zip(*batches, strict=True):
        hidden = x @ w1
        hidden += b1
        np.maximum(hidden, 0.0, out=hidden)
        scores = hidden @ w2
        scores += b2
        scores -= scores.max(1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(1, keepdims=True)
        scores -= y
        scores *= share
        np.matmul(hidden.T, scores, out=g2)
        scores.sum(0, out=c2)
        back = scores @ w2.T
        back *= hidden > 0
        np.matmul(x.T, back, out=g1)
        back.sum(0, out=c1)
        if mu:
            gradient += np.float32(mu) * (vector - start)
        if correction is not None:
            gradient += correction
        gradient *= np.float32(rate)
        vector -= gradient
    return vector
