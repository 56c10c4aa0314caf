"""Scores of free text by its overlap with right answers: ROUGE, BLEU and METEOR.

All are computed on lower-case words. The published values of LlaSMol are on the tokens of SciBERT, which has to be
downloaded, and with WordNet's synonyms: ours are near them, not equal.
"""

from __future__ import annotations

import collections
import importlib
import itertools
import re
import warnings
from collections.abc import Callable, Sequence


def text_scores(answers: Sequence[str | None], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the scores of free text; the best over the right answers of a sample counts.

    * `exact_match`: share of all samples.
    * `rouge_1`, `rouge_2`, `rouge_l`: F1 (Lin 2004), mean over the answers.
    * `bleu_2`, `bleu_4`: of the whole set of answers (Papineni et al. 2002), without smoothing.
    * `meteor_no_synonyms`: METEOR's stages of equal words and equal stems (Banerjee and Lavie 2005), mean over answers.
    * `answered`: the share with an answer.

    What is over the answers is left out if there is none; BLEU and METEOR need nltk.
    """
    pairs = [(a, group) for a, group in zip(answers, golds, strict=True) if a is not None]
    scores = {"exact_match": sum(a in group for a, group in pairs) / len(answers)}
    if pairs:
        for name, measure in {"rouge_1": rouge_1, "rouge_2": rouge_2, "rouge_l": rouge_l}.items():
            scores[name] = sum(max(measure(a, g) for g in group) for a, group in pairs) / len(pairs)
        scores |= _bleu_and_meteor([(words(a), [words(g) for g in group]) for a, group in pairs])
    return {**scores, "answered": len(pairs) / len(answers)}


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


def rouge_1(answer: str, reference: str) -> float:
    """Return the F1 of the words that two texts share, 0 to 1."""
    return _overlap(words(answer), words(reference))


def rouge_2(answer: str, reference: str) -> float:
    """Return the F1 of the pairs of neighbouring words that two texts share, 0 to 1."""
    given, right = words(answer), words(reference)
    return _overlap(list(itertools.pairwise(given)), list(itertools.pairwise(right)))


def rouge_l(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words, 0 to 1."""
    given, right = words(answer), words(reference)
    common = _longest_common_subsequence(given, right)
    return 2 * common / (len(given) + len(right)) if common else 0.0


def _overlap(given: Sequence[object], right: Sequence[object]) -> float:
    common = (collections.Counter(given) & collections.Counter(right)).total()
    return 2 * common / (len(given) + len(right)) if common else 0.0


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        previous = 0  # the value up and to the left in the usual table
        for column, candidate in enumerate(other, start=1):
            above = row[column]
            row[column] = previous + 1 if word == candidate else max(above, row[column - 1])
            previous = above
    return row[-1]


class _NoSynonyms:
    """A WordNet without entries: METEOR then compares words and stems only."""

    def synsets(self, _word: str) -> list[object]:
        return []


def _bleu_and_meteor(pairs: Sequence[tuple[list[str], list[list[str]]]]) -> dict[str, float]:
    try:
        bleu = importlib.import_module("nltk.translate.bleu_score").corpus_bleu
        meteor = importlib.import_module("nltk.translate.meteor_score").meteor_score
    except ImportError:
        return {}
    given, right = [answer for answer, _ in pairs], [golds for _, golds in pairs]
    if not any(set(answer) & {word for gold in golds for word in gold} for answer, golds in pairs):
        overlap = {"bleu_2": 0.0, "bleu_4": 0.0}  # nltk warns of a text without one common word
    else:
        overlap = {f"bleu_{n}": _unsmoothed(bleu, right, given, n) for n in (2, 4)}
    similar = [meteor(golds, answer, wordnet=_NoSynonyms()) for answer, golds in pairs]
    return {**overlap, "meteor_no_synonyms": sum(similar) / len(similar)}


def _unsmoothed(
    bleu: Callable[..., float], right: Sequence[list[list[str]]], given: Sequence[list[str]], order: int
) -> float:
    """Return BLEU up to word groups of a length; 0 where a length has no common group (nltk warns and gives ~1e-78)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        value = float(bleu(right, given, weights=(1 / order,) * order))
    return value if value > 1e-9 else 0.0
