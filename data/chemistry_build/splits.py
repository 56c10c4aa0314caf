"""Splits: every molecule belongs to exactly one of train, dev and test.

Molecules linked by a reaction, stereoisomers of one skeleton, and molecules of one name are in the same split. Frequent
building blocks and reagents would link thousands of molecules into one group; they are training molecules and do not
occur in dev or test reactions, so that no molecule of a test sample is ever in the training data.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data.chemistry_build.molecules import Molecule, skeleton
from data.chemistry_build.reactions import REAGENTS, Reaction

TEST_PERCENT = 15
DEV_PERCENT = 8
# A starting material of this many reactions is a building block.
BLOCK_USES = 3


@dataclass(frozen=True)
class Splits:
    """Split names by canonical SMILES, and the building blocks."""

    of: Mapping[str, str]
    blocks: frozenset[str]


def stable_number(key: str, seed: int) -> int:
    """Return a 64-bit number that depends only on key and seed: the same on every machine and release."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest(), "big")


def assign_splits(molecules: Mapping[str, Molecule], reactions: Sequence[Reaction], seed: int) -> Splits:
    """Assign linked groups of molecules to the splits by a hash of the group's first member."""
    alike = same_skeleton_or_name(molecules)
    blocks = building_blocks(molecules, reactions, alike)
    links = [group for group in alike if group[0] not in blocks]
    links += [[s for s in (*r.starting, r.product) if s not in blocks] for r in reactions]
    first = linked_groups(links)
    of = {key: "train" if key in blocks else _split_name(first.get(key, key), seed) for key in molecules}
    return Splits(of, blocks)


def same_skeleton_or_name(molecules: Mapping[str, Molecule]) -> list[list[str]]:
    """Return the groups of molecules with the same skeleton or name (a name may omit stereochemistry)."""
    shared = collections.defaultdict(list)
    for key, molecule in molecules.items():
        shared["skeleton", skeleton(molecule.mol, key)].append(key)
        if molecule.name:
            shared["name", molecule.name].append(key)
    groups = collections.defaultdict(list)
    for key, first in linked_groups(keys for keys in shared.values() if len(keys) > 1).items():
        groups[first].append(key)
    return list(groups.values())


def building_blocks(
    molecules: Mapping[str, Molecule], reactions: Sequence[Reaction], alike: Iterable[Sequence[str]]
) -> frozenset[str]:
    """Return reagents and frequent starting materials, with all molecules of the same skeleton or name."""
    uses = collections.Counter(s for r in reactions if len(r.starting) > 1 for s in set(r.starting))
    blocks = {s for s, n in uses.items() if n >= BLOCK_USES} | (REAGENTS & molecules.keys())
    return frozenset(blocks.union(*(group for group in alike if blocks.intersection(group))))


def linked_groups(links: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return each member of a link -> the alphabetically first member of its group, by union-find."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for link in links:
        for key in link[1:]:
            first, second = sorted((root(key), root(link[0])))
            parent[second] = first
    return {key: root(key) for key in parent}


def _split_name(group: str, seed: int) -> str:
    percent = stable_number(f"split/{group}", seed) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "dev" if percent < TEST_PERCENT + DEV_PERCENT else "train"
