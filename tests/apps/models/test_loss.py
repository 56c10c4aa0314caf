"""The loss over the counted tokens equals the one computed from full logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from apps.models.batches import Sample, collate
from apps.models.loss import counted_logits, loss_per_sample, mean_loss, summed_loss

VOCABULARY = 50


def networks() -> dict:
    return {
        "llama": (
            LlamaForCausalLM,
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
            ),
        ),
        "opt": (
            OPTForCausalLM,
            OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                ffn_dim=48,
                word_embed_proj_dim=32,
                max_position_embeddings=40,
                dropout=0.0,
            ),
        ),
        "gpt2": (
            GPT2LMHeadModel,
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=40,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            ),
        ),
    }


@pytest.fixture(params=["llama", "opt", "gpt2"])
def network(request):
    kind, config = networks()[request.param]
    torch.manual_seed(0)
    return kind(config)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    lengths, starts = (12, 7, 3, 9), (4, 6, 1, 1)
    tokens = [tuple(torch.randint(4, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths]
    return collate([Sample(t, s, f"task {k % 2}") for k, (t, s) in enumerate(zip(tokens, starts, strict=True))], pad=1)


def naive_labels(batch) -> torch.Tensor:
    labels = batch.tokens.clone()
    labels[:, 1:][~batch.counted] = -100
    labels[:, 0] = -100
    return labels


def test_equals_the_loss_over_full_logits(network, batch):
    full = network(input_ids=batch.tokens, attention_mask=batch.attention).logits
    labels = naive_labels(batch)
    expected = cross_entropy(full[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), ignore_index=-100)
    torch.testing.assert_close(mean_loss(network, batch), expected)
    theirs = network(input_ids=batch.tokens, attention_mask=batch.attention, labels=labels).loss
    torch.testing.assert_close(mean_loss(network, batch), theirs)


def test_gradients_are_equal_too(network, batch):
    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))

    full = network(input_ids=batch.tokens, attention_mask=batch.attention).logits
    naive = cross_entropy(
        full[:, :-1].reshape(-1, VOCABULARY), naive_labels(batch)[:, 1:].reshape(-1), ignore_index=-100
    )
    for ours, theirs in zip(gradients(mean_loss(network, batch)), gradients(naive), strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_only_counted_positions_go_through_the_output_layer(network, batch):
    full = network(input_ids=batch.tokens, attention_mask=batch.attention).logits
    logits = counted_logits(network, batch)
    assert logits.shape == (int(batch.counted.sum()), VOCABULARY)
    torch.testing.assert_close(logits, full[:, :-1][batch.counted])


def test_hook_is_gone_afterwards_even_after_an_error(network, batch):
    mean_loss(network, batch)
    with pytest.raises((RuntimeError, IndexError)):
        counted_logits(network, collate([Sample((1, VOCABULARY + 7), 1, "t")], pad=1))
    assert network(input_ids=batch.tokens).logits.shape == (*batch.tokens.shape, VOCABULARY)


def test_losses_of_samples_sum_to_the_mean(network, batch):
    sums, counts = loss_per_sample(counted_logits(network, batch), batch)
    assert counts.tolist() == [8, 1, 2, 8]
    assert sums.dtype == torch.float64
    assert (sums.sum() / counts.sum()).item() == pytest.approx(mean_loss(network, batch).item(), rel=1e-6)
    for row, length in enumerate((12, 7, 3, 9)):
        alone = network(input_ids=batch.tokens[row : row + 1, :length]).logits
        wanted = batch.tokens[row, 1:length][batch.counted[row, : length - 1]]
        expected = cross_entropy(alone[0, :-1][batch.counted[row, : length - 1]], wanted, reduction="sum")
        assert sums[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_sum_over_the_counted_tokens_through_a_wrapper(network, batch):
    called = []

    def forward(**arguments):
        called.append(sorted(arguments))
        return network(**arguments)

    expected = mean_loss(network, batch) * batch.counted.sum()
    torch.testing.assert_close(summed_loss(forward, network, batch), expected)
    assert called == [["attention_mask", "input_ids", "use_cache"]]
