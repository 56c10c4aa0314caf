"""Local training: the learning rate over a campaign, the same bits for the same seed, and each term of a step."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.base.errors import TrainingError
from apps.base.stop import StopRequest
from apps.models import model as models
from apps.models.batches import Sample, SampleList, plan_batches
from apps.models.model import Model
from apps.ranks.process_group import ProcessGroup
from apps.training import loop as training
from apps.training.checkpoints import Checkpoints
from apps.training.deadline import Deadline
from apps.training.loop import AttemptContext, micro_batches, train
from apps.training.optimization import make_optimizer, optimizer_tensors, update_parameters

SPEC = {"source": "tiny", "dtype": "float32", "seed": 1, "adapter": None, "tiny": {"width": 32, "layers": 1}}
ADAPTER = {
    "method": "fedit",
    "rank": 2,
    "alpha": 4.0,
    "dropout": 0.0,
    "targets": ["q_proj", "v_proj"],
    "last_layers": None,
}


def new_model(**changes) -> Model:
    """Build a model for one test, unlike ``load_model``'s, which is shared."""
    return models._load_model.__wrapped__(json.dumps(SPEC | changes), "cpu")


def training_spec(**changes) -> training.TrainingSpec:
    spec = {
        "steps": 3,
        "batch_size": 4,
        "accumulate": 1,
        "learning_rate": 0.01,
        "schedule": "constant",
        "final_factor": 0.0,
        "warmup_steps": 0,
        "start_step": 0,
        "total_steps": 0,
        "weight_decay": 0.0,
        "clip_norm": None,
        "proximal_mu": 0.0,
        "precision": "no",
        "device": "cpu",
        "keep_optimizer": False,
        "checkpoint_s": 300.0,
        "on_walltime": "finish",
        "until": None,
    }
    return spec | changes


def some_samples(count: int = 12, length: int | None = None) -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    lengths = [length or 6 + k % 5 for k in range(count)]
    return [Sample(tuple(torch.randint(2, 700, (n,), generator=generator).tolist()), 3, "t") for n in lengths]


def silent(step: int, loss: float, speed: float) -> None:
    pass


class NoCheckpoints(Checkpoints):
    """Checkpoints for trainings that are too short to save."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def newest(self) -> None:
        return None


def attempt(model: Model, report: training.Report = silent, micro_batch: int = 99, **changes) -> AttemptContext:
    watch = Deadline(300.0, None, StopRequest())
    around = AttemptContext(ProcessGroup("cpu"), watch, NoCheckpoints(), report, model.network, micro_batch)
    return replace(around, **changes)


def run(
    model: Model, seed: int = 1, state: dict | None = None, samples: list[Sample] | None = None, **changes
) -> training.TrainingResult:
    taken = SampleList(samples or some_samples())
    return train(model, taken, training_spec(**changes), seed, state, attempt(model))


def values(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.trained.items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


class Recorder:
    """Optimiser that records the gradients and changes nothing."""

    def __init__(self, model: Model) -> None:
        self.model, self.param_groups, self.gradients = model, [{"lr": 0.0}], {}

    def step(self) -> None:
        self.gradients = {name: tensor.grad.clone() for name, tensor in self.model.trained.items()}

    def zero_grad(self, **_: bool) -> None:
        for tensor in self.model.trained.values():
            tensor.grad = None


def step(model: Model, groups: list[list[Sample]], optimizer, start: tuple | list = (), **changes) -> float:
    spec, micro_batch = training_spec(**changes), changes.pop("micro_batch", 99)
    loss = training._gradients(model, groups, attempt(model, micro_batch=micro_batch))
    update_parameters(optimizer, list(model.trained.values()), start, spec, 0.01)
    return loss


def gradients(model: Model, groups: list[list[Sample]], start: tuple | list = (), **changes) -> dict[str, torch.Tensor]:
    recorder = Recorder(model)
    step(model, groups, recorder, start, **changes)
    assert recorder.param_groups[0]["lr"] == 0.01
    return recorder.gradients


def test_schedule_is_of_the_campaign_not_of_the_round(monkeypatch):
    rates: list[float] = []

    def record(optimizer, parameters, start, spec, rate):
        rates.append(rate)
        update_parameters(optimizer, parameters, start, spec, rate)

    monkeypatch.setattr(training, "update_parameters", record)
    common = {"steps": 3, "schedule": "linear", "total_steps": 6, "learning_rate": 0.6}
    for start_step in (0, 3):
        run(new_model(), start_step=start_step, **common)
    assert rates == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_same_seed_same_bits():
    one, two, other = new_model(), new_model(), new_model()
    losses = [run(model, seed).state.losses for model, seed in ((one, 1), (two, 1), (other, 2))]
    assert losses[0] == losses[1] != losses[2]
    assert equal(values(one), values(two))
    assert not equal(values(one), values(other))


def test_dropout_is_seeded():
    spec = {"adapter": ADAPTER | {"dropout": 0.5}}
    one, two = new_model(**spec), new_model(**spec)
    run(one)
    torch.rand(7)  # moves the global generator
    run(two)
    assert equal(values(one), values(two))


def test_the_result_counts_what_was_done():
    told, model = [], new_model()
    around = attempt(model, lambda *a: told.append(a))
    outcome = train(
        model, SampleList(some_samples(12, length=8)), training_spec(steps=2, accumulate=3), 1, None, around
    )
    done = outcome.state
    assert (done.steps, outcome.steps_here, outcome.samples, done.tokens) == (2, 2, 2 * 3 * 4, 2 * 3 * 4 * 8)
    assert outcome.padding == 0.0
    assert [number for number, _, _ in told] == [1, 2]
    assert [loss for _, loss, _ in told] == done.losses
    assert all(speed > 0 for _, _, speed in told)


def test_training_learns():
    losses = run(new_model(), steps=30, samples=some_samples(4)).state.losses
    assert losses[-1] < 0.5 * losses[0]


def test_only_adapters_move_under_lora():
    model = new_model(adapter=ADAPTER)
    frozen = {n: p.detach().clone() for n, p in model.network.named_parameters() if ".lora_" not in n}
    before = values(model)
    run(model)
    assert all(torch.equal(p, frozen[n]) for n, p in model.network.named_parameters() if n in frozen)
    after = values(model)
    assert all(not torch.equal(before[n], after[n]) for n in before)


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    model, samples = new_model(), some_samples(8, length=9)  # equal lengths: equally many counted tokens
    large = gradients(model, [samples])
    small = gradients(model, [samples[:4], samples[4:]])
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_gradient_and_the_loss_of_the_whole_batch(micro_batch):
    model, samples = new_model(), some_samples(8)
    whole, pieces = Recorder(model), Recorder(model)
    losses = [step(model, [samples], whole), step(model, [samples], pieces, micro_batch=micro_batch)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(pieces.gradients[name], gradient, rtol=1e-4, atol=1e-7)


@given(count=st.integers(1, 40), size=st.integers(1, 9), micro_batch=st.integers(1, 9))
def test_a_batch_is_distributed_whole_and_in_equally_many_pieces(count, size, micro_batch):
    group = some_samples(count)
    shares = [list(micro_batches(group, rank, size, micro_batch)) for rank in range(size)]
    counted = [sample for share in shares for piece, factor in share if factor for sample in piece]
    assert sorted(counted, key=id) == sorted(group, key=id)
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(piece) <= micro_batch for share in shares for piece, _ in share)


def test_mixed_precision_changes_rounding_only():
    model, samples = new_model(), some_samples(4)
    exact = training._gradients(model, [samples], attempt(model))
    mixed = training._gradients(model, [samples], attempt(model, autocast=True))
    assert exact != mixed == pytest.approx(exact, rel=1e-2)


def test_clip_bounds_the_norm_of_all_gradients_together():
    model, samples = new_model(), some_samples(4)
    free = gradients(model, [samples])
    norm = torch.stack([g.norm() for g in free.values()]).norm().item()
    clipped = gradients(model, [samples], clip_norm=norm / 10)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 10, rtol=1e-3, atol=1e-8)
    assert equal(gradients(model, [samples], clip_norm=norm * 10), free)


def test_proximal_term_adds_mu_times_the_way_from_the_start():
    model, samples, mu = new_model(), some_samples(4), 0.7
    start = [tensor.detach() - 0.01 for tensor in model.trained.values()]
    free, held = gradients(model, [samples]), gradients(model, [samples], start, proximal_mu=mu)
    for (name, tensor), origin in zip(model.trained.items(), start, strict=True):
        torch.testing.assert_close(held[name], free[name] + mu * (tensor.detach() - origin))


def test_proximal_term_is_nothing_at_the_start_and_pulls_back_later():
    def way(mu: float, steps: int) -> tuple[dict[str, torch.Tensor], float]:
        model = new_model()
        start = values(model)
        run(model, steps=steps, proximal_mu=mu)
        end = values(model)
        return end, math.sqrt(sum(float((end[n] - start[n]).square().sum()) for n in end))

    assert equal(way(0.0, 1)[0], way(100.0, 1)[0])
    assert way(100.0, 10)[1] < 0.5 * way(0.0, 10)[1]


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_carried_optimiser_continues_one_run(adapter, tmp_path):
    """Two rounds with the moments passed on by file give the bits of one AdamW over the same batches."""
    model, samples = new_model(adapter=adapter), some_samples()
    kept = None
    for seed in (1, 2):
        outcome = run(model, seed, kept, samples, weight_decay=0.1)
        artifact = save_tensors(tmp_path, optimizer_tensors(model.trained, outcome.optimizer), "optimizer")
        kept = load_tensors(artifact_path(tmp_path, artifact))

    other = new_model(adapter=adapter)
    spec, lengths = training_spec(weight_decay=0.1), [len(s.tokens) for s in samples]
    optimizer = make_optimizer(other.trained, spec, None)
    for seed in (1, 2):
        for rows in plan_batches(lengths, 4, 3, seed):
            step(other, [[samples[i] for i in rows]], optimizer, weight_decay=0.1)
    assert equal(values(model), values(other))
    final = optimizer_tensors(other.trained, optimizer)
    assert equal(kept, final)
    assert {float(v) for n, v in final.items() if n.endswith("/step")} == {6.0}


def test_fresh_optimiser_differs_from_a_carried_one():
    one, two = new_model(), new_model()
    state = optimizer_tensors(one.trained, run(one).optimizer)
    run(two)
    assert equal(values(one), values(two))
    run(one, 2, state)
    run(two, 2, None)
    assert not equal(values(one), values(two))


def test_tensor_that_never_had_a_gradient_does_not_break_the_hand_over():
    model = new_model()
    idle = torch.nn.Parameter(torch.zeros(3))
    model.state["idle"] = idle
    state = optimizer_tensors(model.trained, run(model).optimizer)
    assert not any(name.startswith("idle/") for name in state)
    run(model, 2, state)
    assert not idle.any()


def test_gradients_of_an_interrupted_step_do_not_count():
    one, two = new_model(), new_model()
    for tensor in two.trained.values():
        tensor.grad = torch.ones_like(tensor)
    run(one)
    run(two)
    assert equal(values(one), values(two))


def test_loss_that_is_not_finite_ends_training():
    model = new_model()
    with torch.no_grad():
        next(iter(model.trained.values())).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at step 1.*learning_rate"):
        run(model)


def test_no_samples_is_an_error_not_an_endless_loop():
    with pytest.raises(TrainingError, match="no samples"):
        train(new_model(), SampleList([]), training_spec(), 1, None, attempt(new_model()))
