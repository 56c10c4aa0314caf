"""Molecules: registered compounds in the tables of `chemicals` that are small, neutral and organic."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REMEDY = "pip install 'crossfed[chemistry]'"

ELEMENTS = frozenset({"C", "H", "N", "O", "F", "Cl", "Br", "I", "S", "P"})

# The source table names some substituents in this dialect; only other names are kept.
DIALECT = re.compile(r"oxidany|azany|chlorany|bromany|fluorany|iodany|sulfanylidene|lambda|\$")

IDENTIFIER_TABLES = (
    "chemical identifiers pubchem small.tsv",
    "chemical identifiers example user db.tsv",
    "chemical identifiers pubchem large.tsv",
)
CAS_COLUMN, SMILES_COLUMN, NAME_COLUMN = 1, 4, 7


@dataclass(frozen=True)
class Molecule:
    """A compound: canonical SMILES as key, Kekule SMILES for the records, its rdkit object."""

    key: str
    smiles: str
    formula: str
    name: str | None
    cas: str
    mol: Any


def rdkit(module: str = "Chem") -> Any:
    """Return a module of rdkit such as "Chem.AllChem"; raise ModuleNotFoundError with the extra to install."""
    try:
        return importlib.import_module(f"rdkit.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the chemistry generator needs rdkit and chemicals: {REMEDY}", name=error.name
        ) from error


def package_folder(name: str, remedy: str) -> Path:
    """Return the folder of an installed package without importing it (only its data files are read)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the chemistry generator reads tables of {name!r}: {remedy}", name=name)
    return Path(spec.submodule_search_locations[0])


def chemicals_folder() -> Path:
    """Return the folder of the tables of the package `chemicals`."""
    return package_folder("chemicals", REMEDY)


def load_molecules(max_heavy: int, max_name: int) -> dict[str, Molecule]:
    """Return canonical SMILES -> molecule for compounds of 2 to `max_heavy` heavy atoms, in the table's order.

    A name of more than `max_name` characters or in `DIALECT` is dropped; its molecule is kept.
    """
    chem = rdkit()
    found: dict[str, Molecule] = {}
    for row in _identifier_rows():
        smiles = row[SMILES_COLUMN]
        # No kept molecule needs four characters per heavy atom: large ones are not parsed.
        if not smiles or "." in smiles or len(smiles) > 4 * max_heavy:
            continue
        mol = chem.MolFromSmiles(smiles)
        if mol is None or not _is_small_organic(chem, mol, max_heavy):
            continue
        key = chem.MolToSmiles(mol)
        if key not in found:
            name = plain_name(row[NAME_COLUMN], max_name)
            found[key] = _molecule(key, mol, name, row[CAS_COLUMN])
    return found


def plain_name(name: str, max_name: int) -> str | None:
    """Return the name if its length is usable and it is not in `DIALECT`, else None."""
    return name if 3 <= len(name) <= max_name and not DIALECT.search(name) else None


def kekule_smiles(mol: Any) -> str:
    """Return canonical SMILES with alternating bonds, the form of the public set."""
    chem = rdkit()
    copy = chem.Mol(mol)
    chem.Kekulize(copy, clearAromaticFlags=True)
    return chem.MolToSmiles(copy, kekuleSmiles=True)


def skeleton(mol: Any, key: str) -> str:
    """Return canonical SMILES without stereochemistry: equal for all stereoisomers of one compound."""
    return rdkit().MolToSmiles(mol, isomericSmiles=False) if re.search(r"[@/\\]", key) else key


def _identifier_rows() -> Iterator[list[str]]:
    folder = chemicals_folder() / "Identifiers"
    for table in IDENTIFIER_TABLES:
        with open(folder / table, encoding="utf-8") as handle:
            for line in handle:
                row = line.rstrip("\n").split("\t")
                if len(row) > NAME_COLUMN:
                    yield row


def _is_small_organic(chem: Any, mol: Any, max_heavy: int) -> bool:
    return (
        2 <= mol.GetNumHeavyAtoms() <= max_heavy
        and chem.GetFormalCharge(mol) == 0
        and all(
            a.GetSymbol() in ELEMENTS and not a.GetIsotope() and not a.GetNumRadicalElectrons() for a in mol.GetAtoms()
        )
    )


def _molecule(key: str, mol: Any, name: str | None, cas: str) -> Molecule:
    formula = rdkit("Chem.rdMolDescriptors").CalcMolFormula(mol)
    return Molecule(key, kekule_smiles(mol), formula, name, cas, mol)
