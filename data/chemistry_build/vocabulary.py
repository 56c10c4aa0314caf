"""Training of the small byte-level BPE of the tiny default model."""

from __future__ import annotations

from collections.abc import Iterable

from data.tasks import Record

VOCABULARY_SIZE = 768
SPECIAL_TOKENS = ("<pad>", "<eos>")


def train_tokenizer(records: Iterable[Record]) -> bytes:
    """Return a `tokenizers` JSON file of 768 entries, trained on the questions and answers of the records.

    It contains all bytes, so that it can encode any text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"Q: {record['input']}\nA: {record['output']}" for record in records)
    tokenizer.train_from_iterator(texts, trainer)
    return (tokenizer.to_str(pretty=False) + "\n").encode()
