"""Path of the tokenizer of the tiny default model."""

from __future__ import annotations

from pathlib import Path


def tiny_tokenizer_path() -> Path:
    """Return the path of the byte-level BPE of 768 entries (a `tokenizers` JSON file; special tokens <pad> and <eos>).

    All sites must use this file: with a tokenizer trained per site, token ids would differ and the average of the
    models would have no meaning.
    """
    return Path(__file__).resolve().parent / "chemistry" / "tokenizer.json"
