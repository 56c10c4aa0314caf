"""The fourteen chemistry tasks as a problem of the virtual engine: a tiny language model, trained as sites do.

Tokens, batches, loss and AdamW are those of a site's own training (apps/); a step of the tiny model takes some tens of
milliseconds, a hundred times one of the digits. Every request starts with a fresh AdamW. The loss is the mean over
tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apps.evaluation.losses import TestSet, task_losses
from apps.models.batches import Batch, Sample, by_length, collate, plan_batches
from apps.models.encoding import encode
from apps.models.loss import mean_loss
from apps.models.model import load_first_model
from apps.training.optimization import make_optimizer, update_parameters
from data.partition import dirichlet_split
from data.records import load_records
from workflows.studies.simulation.digits import SEVEN_BILLION
from workflows.studies.simulation.problem import LocalWork, ModelScore

if TYPE_CHECKING:
    import numpy as np


SIZE = {"width": 32, "layers": 1}
PROMPT = "{input}\nAnswer:"
TRAIN_A_TASK, TEST_A_TASK, MOST_TOKENS, TEST_BATCH = 60, 4, 64, 28
LEAST_SAMPLES = 8  # of a site; draws that give a site fewer are repeated
TRAINING: dict[str, Any] = {"learning_rate": 3e-3, "weight_decay": 0.0, "clip_norm": 1.0}


class ChemistryTasks:
    """Real training of a language model from scratch, with data split over sites by a Dirichlet draw over the tasks."""

    def __init__(self, sites: int, alpha: float, seed: int, batch: int = 4, nbytes: float = SEVEN_BILLION) -> None:
        import torch

        torch.set_num_threads(1)
        spec = {"source": "tiny", "dtype": "float32", "seed": seed, "adapter": None, "tiny": SIZE}
        self.model = load_first_model(spec)  # type: ignore[arg-type]
        self.seed, self.batch, self.nbytes, self.rate = seed, batch, nbytes, TRAINING["learning_rate"]
        self.shards = split_samples(self.model.tokenizer, sites, alpha, seed)
        self.samples = tuple(len(shard) for shard in self.shards)
        self.tests = _test_batches(self.model.tokenizer)
        self.start = self._vector()

    def first(self) -> np.ndarray:
        return self.start.copy()

    def train(self, model: np.ndarray, work: LocalWork, correction: np.ndarray | None = None) -> np.ndarray:
        import torch

        if correction is not None:
            raise ValueError("corrected gradients need plain SGD; the tasks are trained by AdamW")
        self._set(model)
        trained, shard = self.model.trained, self.shards[work.site]
        spec: Any = {**TRAINING, "proximal_mu": work.proximal_mu}
        optimizer = make_optimizer(trained, spec, None)
        start = [tensor.detach().clone() for tensor in trained.values()] if work.proximal_mu else []
        order = self.seed * 1_000_003 + work.site * 10_007 + work.round
        self.model.network.train()
        for rows in plan_batches([len(sample.tokens) for sample in shard], self.batch, work.steps, order):
            batch = collate([shard[row] for row in rows], self.model.tokenizer.pad_token_id)
            with torch.enable_grad():
                mean_loss(self.model.network, batch).backward()
            update_parameters(optimizer, list(trained.values()), start, spec, self.rate * work.rate_factor)
        return self._vector()

    def score(self, model: np.ndarray) -> ModelScore:

        self._set(model)
        losses = tuple(task["loss"] for task in task_losses(self.model, TestSet(self.tests, [])).values())
        return ModelScore(sum(losses) / len(losses), float("nan"), losses)

    def _vector(self) -> np.ndarray:
        import numpy as np

        return np.concatenate([tensor.detach().reshape(-1).numpy() for tensor in self.model.trained.values()])

    def _set(self, vector: np.ndarray) -> None:
        import torch

        start = 0
        with torch.no_grad():
            for tensor in self.model.trained.values():
                part = vector[start : start + tensor.numel()]
                tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
                start += tensor.numel()


def _data_spec() -> Any:
    return {
        "source": "embedded",
        "tasks": [],
        "per_task": None,
        "max_tokens": MOST_TOKENS,
        "prompt": PROMPT,
        "loss_on": "answer",
    }


def _test_batches(tokenizer: Any) -> list[Batch]:

    samples = encode(load_records("embedded", "test", None, TEST_A_TASK), tokenizer, _data_spec())
    return [collate(group, tokenizer.pad_token_id) for group in by_length(samples, TEST_BATCH)]


def split_samples(tokenizer: Any, sites: int, alpha: float, seed: int) -> list[list[Sample]]:
    """Return the training samples of each site: the first draw that gives all enough, or the most even of a hundred."""
    records, names = load_records("embedded", "train", None, TRAIN_A_TASK), [str(site) for site in range(sites)]
    draws = (dirichlet_split(records, names, alpha, seed * 1000 + attempt) for attempt in range(100))
    best: dict[str, Any] = {}
    for draw in draws:
        if not best or min(map(len, draw.values())) > min(map(len, best.values())):
            best = draw
        if min(map(len, best.values())) >= LEAST_SAMPLES:
            break
    return [encode(best[name], tokenizer, _data_spec()) for name in names]
