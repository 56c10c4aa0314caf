"""Scores of molecules that are written as SMILES, with the definitions of LlaSMol (arXiv 2402.09391).

A molecule's identity is the set of the InChIs of its parts, each taken by itself, so a part that is written twice
counts once, and a salt differs from its uncharged components.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

MORGAN_RADIUS = 2


def smiles_scores(answers: Sequence[str | None], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the scores of SMILES; the best over the right answers of a sample counts.

    * `exact_match`: the same molecules as a right answer; `validity`: every part is valid SMILES (shares of all).
    * `morgan_tanimoto` (counts, radius 2, unfolded), `maccs_tanimoto`, `rdk_tanimoto`: similarity of fingerprints to
      the nearest right answer; mean over the valid answers, left out if there is none.
    * `answered`: the share with an answer.

    Without rdkit only `exact_match`, of the text with its parts in any order, and `answered` are returned.
    """
    if has_rdkit():
        return _scores(answers, _molecules(answers, golds))
    logger.warning("SMILES are compared as text only; for rdkit's checks: pip install 'crossfed[chemistry]'")
    pairs = zip(answers, golds, strict=True)
    same = [a is not None and any(sorted(parts(a)) == sorted(parts(g)) for g in group) for a, group in pairs]
    return {"exact_match": sum(same) / len(same), "answered": _answered(answers)}


def reactant_scores(answers: Sequence[str | None], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return, besides `smiles_scores`, how many answers share molecules with one right answer.

    `partial_match`: at least one molecule of the answer is in a right answer; `subset_match`: all of them are in the
    same one (LlaSMol's multiple match of a retrosynthesis). Both need rdkit.
    """
    if not has_rdkit():
        return smiles_scores(answers, golds)
    found = _molecules(answers, golds)
    some = [a is not None and any(a.inchis & g.inchis for g in group) for a, group in found]
    every = [a is not None and any(a.inchis <= g.inchis for g in group) for a, group in found]
    partial = {"partial_match": sum(some) / len(some), "subset_match": sum(every) / len(every)}
    return {**_scores(answers, found), **partial}


def _molecules(
    answers: Sequence[str | None], golds: Sequence[Sequence[str]]
) -> list[tuple[Molecule | None, list[Molecule]]]:
    """Return the molecule of each answer, None if it is not valid, and those of its right answers."""
    with _quiet():
        return [(molecule(a), [m for m in map(molecule, group) if m]) for a, group in zip(answers, golds, strict=True)]


def _scores(answers: Sequence[str | None], found: Sequence[tuple[Molecule | None, list[Molecule]]]) -> dict[str, float]:
    same = [a is not None and any(a.inchis == g.inchis for g in group) for a, group in found]
    nearest = [_nearest(a, group) for a, group in found if a is not None]
    similar = {name: sum(s[name] for s in nearest) / len(nearest) for name in (nearest[0] if nearest else ())}
    valid = {"exact_match": sum(same) / len(same), "validity": len(nearest) / len(found)}
    return {**valid, **similar, "answered": _answered(answers)}


def _answered(answers: Sequence[str | None]) -> float:
    return sum(a is not None for a in answers) / len(answers)


@dataclass(frozen=True)
class Molecule:
    """A molecule or mixture: InChIs of its parts, and its fingerprints by the name of their score."""

    inchis: frozenset[str]
    fingerprints: Mapping[str, Any]


def molecule(smiles: str | None) -> Molecule | None:
    """Return what SMILES describe, parts separated by "." or ";"; None if any part is empty or not valid."""
    chem = importlib.import_module("rdkit.Chem")
    found = [chem.MolFromSmiles(part) if part else None for part in parts(smiles or "")]
    if None in found:
        return None
    whole = chem.MolFromSmiles(".".join(chem.MolToSmiles(part) for part in found))
    if whole is None:
        return None
    make = importlib.import_module("rdkit.Chem.rdFingerprintGenerator")
    return Molecule(
        frozenset(_identity(chem, part) for part in found),
        {
            "morgan_tanimoto": make.GetMorganGenerator(radius=MORGAN_RADIUS).GetSparseCountFingerprint(whole),
            "maccs_tanimoto": importlib.import_module("rdkit.Chem.MACCSkeys").GenMACCSKeys(whole),
            "rdk_tanimoto": chem.RDKFingerprint(whole),
        },
    )


def parts(smiles: str) -> list[str]:
    """Return the components of a mixture; the public set separates them by ";", SMILES by "."."""
    return [part.strip() for part in smiles.replace(";", ".").split(".")]


def has_rdkit() -> bool:
    """Return True if rdkit can be imported."""
    try:
        importlib.import_module("rdkit.Chem")
    except ImportError:
        return False
    return True


def _identity(chem: Any, part: Any) -> str:
    """Return the InChI, which does not depend on the drawing of a structure; canonical SMILES if InChI fails."""
    for atom in part.GetAtoms():
        atom.SetAtomMapNum(0)
    return str(chem.MolToInchi(part) or chem.MolToSmiles(part))


def _nearest(answer: Molecule, golds: Sequence[Molecule]) -> dict[str, float]:
    """Return each fingerprint's similarity to the nearest right answer, 0 to 1."""
    similar = importlib.import_module("rdkit.DataStructs").TanimotoSimilarity
    return {
        name: max((similar(mine, gold.fingerprints[name]) for gold in golds), default=0.0)
        for name, mine in answer.fingerprints.items()
    }


def _quiet() -> Any:
    """Return a context in which rdkit does not print what is wrong with a text."""
    return importlib.import_module("rdkit.rdBase").BlockLogs()
