"""Where the tokenizer of the tiny default model lies."""

from __future__ import annotations

from pathlib import Path


def tiny_tokenizer_path() -> Path:
    """The byte-level BPE of 768 entries (a `tokenizers` JSON file; special tokens <pad> and <eos>).

    All sites must use this one file: a tokenizer trained per site would give each site other token ids, and
    averaging their models would mean nothing.
    """
    return Path(__file__).resolve().parent / "chemistry" / "tokenizer.json"
