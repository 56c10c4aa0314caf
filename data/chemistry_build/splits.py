"""The splits: every molecule belongs to exactly one of train, dev and test.

Molecules linked by a reaction, stereoisomers of one skeleton, and molecules of one name go to one split
together. Frequent building blocks and reagents would link thousands of molecules into one piece; they are
training molecules and do not occur in dev or test reactions, so no molecule of a test sample is ever seen in
training.
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
    """Canonical SMILES -> split name, and the building blocks among them."""

    of: Mapping[str, str]
    blocks: frozenset[str]


def stable_number(key: str, seed: int) -> int:
    """A 64-bit number that depends on the key and the seed only: the same on every machine and release."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest(), "big")


def assign_splits(molecules: Mapping[str, Molecule], reactions: Sequence[Reaction], seed: int) -> Splits:
    """Deal whole linked groups of molecules to the splits by a hash of the group's first member."""
    alike = look_alikes(molecules)
    blocks = building_blocks(molecules, reactions, alike)
    links = [group for group in alike if group[0] not in blocks]
    links += [[s for s in (*r.starting, r.product) if s not in blocks] for r in reactions]
    first = linked_groups(links)
    of = {key: "train" if key in blocks else _split_name(first.get(key, key), seed) for key in molecules}
    return Splits(of, blocks)


def look_alikes(molecules: Mapping[str, Molecule]) -> list[list[str]]:
    """Groups of two or more molecules with one skeleton or one name (names may leave stereochemistry out)."""
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
    """Reagents and much used starting materials, together with all that look like them."""
    uses = collections.Counter(s for r in reactions if len(r.starting) > 1 for s in set(r.starting))
    blocks = {s for s, n in uses.items() if n >= BLOCK_USES} | (REAGENTS & molecules.keys())
    return frozenset(blocks.union(*(group for group in alike if blocks.intersection(group))))


def linked_groups(links: Iterable[Sequence[str]]) -> dict[str, str]:
    """Union-find: each member of a link -> the alphabetically first member of its linked group."""
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
