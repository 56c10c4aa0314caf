"""Checks of a chemistry set before it is written: no molecule in two splits, valid answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from data.chemistry_build.molecules import rdkit
from data.chemistry_build.reactions import REAGENTS
from data.tasks import IUPAC, SMILES, Record

SHOWN = 3


@dataclass(frozen=True)
class Contents:
    """Contents of one split: skeletons of molecules (no stereochemistry), names, and problems of records."""

    molecules: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def check_records(records: Mapping[str, Iterable[Record]]) -> list[str]:
    """Return the problems of a set given as split -> records; an empty list if there are none.

    Reagents of the forward task are not molecules to be learned and may occur in all splits.
    """
    contents = {split: _contents(rows) for split, rows in records.items()}
    problems = [f"{split}: {fault}" for split, found in contents.items() for fault in found.faults]
    for one, other in itertools.combinations(contents, 2):
        problems += _overlap(one, other, "molecules", contents[one].molecules & contents[other].molecules)
        problems += _overlap(one, other, "names", contents[one].names & contents[other].names)
    return problems


def _overlap(one: str, other: str, what: str, shared: set[str]) -> Iterator[str]:
    if shared:
        yield f"{one} and {other} share {len(shared)} {what}, such as {', '.join(sorted(shared)[:SHOWN])}"


def _contents(rows: Iterable[Record]) -> Contents:
    found = Contents()
    for row in rows:
        for tag, value in (
            (row["input_core_tag_left"], row["raw_input"]),
            (row["output_core_tag_left"], row["raw_output"]),
        ):
            if tag == SMILES[0]:
                _note_molecules(row, value, found)
            elif tag == IUPAC[0]:
                found.names.add(value)
        if row["task"] == "name_conversion-s2f" and _formula(row["raw_input"]) != row["raw_output"]:
            found.faults.append(f"{row['sample_id']}: {row['raw_output']} is not {row['raw_input']}'s formula")
    return found


def _note_molecules(row: Record, value: str, found: Contents) -> None:
    chem = rdkit()
    is_forward_question = row["task"] == "forward_synthesis" and value == row["raw_input"]
    for part in value.split("."):
        mol = chem.MolFromSmiles(part)
        if mol is None:
            found.faults.append(f"{row['sample_id']}: {part!r} is not a valid SMILES string")
        elif not (is_forward_question and part in REAGENTS):
            found.molecules.add(chem.MolToSmiles(mol, isomericSmiles=False))


def _formula(smiles: str) -> str | None:
    mol = rdkit().MolFromSmiles(smiles)
    return None if mol is None else rdkit("Chem.rdMolDescriptors").CalcMolFormula(mol)
