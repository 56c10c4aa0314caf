"""Samples: candidates of every task, and the selection of a given number of them."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.chemistry_build.descriptions import compiled_groups, describe
from data.chemistry_build.molecules import Molecule
from data.chemistry_build.reactions import Reaction
from data.chemistry_build.splits import Splits, stable_number
from data.tasks import EMBEDDED_TASKS, Record, record

SPLIT_NAMES = ("train", "dev", "test")
# Two primes near a thousand, so that the phrasings of question and answer are selected independently.
QUESTION_MODULUS, ANSWER_MODULUS = 997, 1009


@dataclass(frozen=True)
class Candidate:
    """A question and its answer as raw values, before a phrasing is selected."""

    task: str
    split: str
    raw_input: str
    raw_output: str


def candidates(
    molecules: Mapping[str, Molecule],
    reactions: Sequence[Reaction],
    properties: Mapping[str, Mapping[str, str]],
    splits: Splits,
) -> Iterator[Candidate]:
    """Yield all possible samples."""
    groups = compiled_groups()
    for key, molecule in molecules.items():
        split = splits.of[key]
        yield from _name_candidates(molecule, split)
        text = describe(molecule, groups)
        yield Candidate("molecule_captioning", split, molecule.smiles, text)
        yield Candidate("molecule_generation", split, text, molecule.smiles)
    for task, values in properties.items():
        for key, value in values.items():
            yield Candidate(task, splits.of[key], molecules[key].smiles, value)
    for reaction in reactions:
        yield from _reaction_candidates(reaction, molecules, splits)


def _name_candidates(molecule: Molecule, split: str) -> Iterator[Candidate]:
    if molecule.name:
        yield Candidate("name_conversion-i2f", split, molecule.name, molecule.formula)
        yield Candidate("name_conversion-i2s", split, molecule.name, molecule.smiles)
        yield Candidate("name_conversion-s2i", split, molecule.smiles, molecule.name)
    yield Candidate("name_conversion-s2f", split, molecule.smiles, molecule.formula)


def _reaction_candidates(reaction: Reaction, molecules: Mapping[str, Molecule], splits: Splits) -> Iterator[Candidate]:
    found = {splits.of[key] for key in (*reaction.starting, reaction.product)}
    if len(found) != 1:
        return  # a building block and a molecule of another split: it can be in no split
    split = found.pop()
    starting = sorted(molecules[key].smiles for key in reaction.starting)
    reagents = [reaction.rule.reagent] if reaction.rule.reagent else []
    product = molecules[reaction.product].smiles
    yield Candidate("forward_synthesis", split, ".".join(starting + reagents), product)
    yield Candidate("retrosynthesis", split, product, ".".join(starting))


def choose(
    pool: Iterator[Candidate], sizes: Mapping[str, int], seed: int
) -> tuple[dict[tuple[str, str], list[Record]], dict[tuple[str, str], int]]:
    """Return (split, task) -> the records with the smallest hashes, and (split, task) -> the number available.

    Because of the selection by hash, a larger set contains every smaller one of the same seed.
    """
    ranked: dict[tuple[str, str], dict[Candidate, int]] = collections.defaultdict(dict)
    for item in pool:
        # A dict, since two rules can give the same reaction.
        text = f"{item.task}|{item.raw_input}|{item.raw_output}"
        ranked[item.split, item.task][item] = stable_number(text, seed)
    chosen, available = {}, {}
    for split in SPLIT_NAMES:
        for task in EMBEDDED_TASKS:
            order = sorted(ranked[split, task].items(), key=lambda pair: (pair[1], pair[0].raw_input))
            available[split, task] = len(order)
            chosen[split, task] = [_finish(c, n, i) for i, (c, n) in enumerate(order[: sizes[split]])]
    return chosen, available


def _finish(item: Candidate, number: int, index: int) -> Record:
    sample_id = f"{item.task}.{item.split}.{index}"
    return record(
        item.task,
        item.raw_input,
        item.raw_output,
        item.split,
        number % QUESTION_MODULUS,
        number % ANSWER_MODULUS,
        sample_id,
    )
