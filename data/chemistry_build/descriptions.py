"""Descriptions of molecules: one or two sentences, computed from the structure."""

from __future__ import annotations

from typing import Any

from data.chemistry_build.molecules import Molecule, rdkit

# Name of a group -> SMARTS, in the order in which groups are listed.
GROUPS = {
    "carboxylic acid": "[CX3](=O)[OX2H1]",
    "ester": "[CX3](=O)[OX2][#6;!$(C=O)]",
    "amide": "[CX3](=O)[NX3;!$(N=*)]",
    "aldehyde": "[CX3H1](=O)[#6,H]",
    "ketone": "[#6][CX3](=O)[#6]",
    "nitrile": "C#N",
    "nitro group": "[N+](=O)[O-]",
    "phenol": "c[OX2H]",
    "alcohol": "[CX4][OX2H]",
    "ether": "[#6;!$(C=O)][OX2][#6;!$(C=O)]",
    "primary amine": "[NX3;H2;!$(NC=[O,S,N]);!$(NS)][#6]",
    "secondary amine": "[NX3;H1;!$(NC=[O,S,N]);!$(NS)]([#6])[#6]",
    "tertiary amine": "[NX3;H0;!$(NC=[O,S,N]);!$(NS);!$([N+])]([#6])([#6])[#6]",
    "thiol": "[SX2H]",
    "sulfide": "[#6][SX2][#6]",
    "sulfonamide": "S(=O)(=O)N",
    "alkene": "[CX3]=[CX3]",
    "alkyne": "[CX2]#[CX2]",
    "fluoride": "[#6]F",
    "chloride": "[#6]Cl",
    "bromide": "[#6]Br",
    "iodide": "[#6]I",
    "acyl chloride": "C(=O)Cl",
    "isocyanate": "N=C=O",
    "phosphorus ester": "P(=O)O[#6]",
}
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MAX_GROUPS = 5


def compiled_groups() -> dict[str, Any]:
    """Return the groups as rdkit patterns; called once per build, since parsing them is slow."""
    chem = rdkit()
    return {name: chem.MolFromSmarts(smarts) for name, smarts in GROUPS.items()}


def describe(molecule: Molecule, groups: dict[str, Any]) -> str:
    """Return a description: kind, formula, functional groups and rings.

    For example "An aromatic molecule, C6H6O, with one phenol. It has one ring."
    """
    descriptors = rdkit("Chem.rdMolDescriptors")
    rings = descriptors.CalcNumRings(molecule.mol)
    if not rings:
        kind = "An open-chain"
    else:
        kind = "An aromatic" if descriptors.CalcNumAromaticRings(molecule.mol) else "A cyclic"
    ending = f" It has {counted(rings, 'ring')}." if rings else ""
    return f"{kind} molecule, {molecule.formula}, with {_group_list(molecule.mol, groups)}.{ending}"


def counted(number: int, noun: str) -> str:
    """Return a number in words with its noun: "one ring", "two rings", "12 rings"."""
    word = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else str(number)
    return f"{word} {noun}" if number == 1 else f"{word} {noun}s"


def _group_list(mol: Any, groups: dict[str, Any]) -> str:
    numbers = ((name, len(mol.GetSubstructMatches(pattern))) for name, pattern in groups.items())
    named = [counted(number, name) for name, number in numbers if number]
    if not named:
        return "no common functional group"
    more = ["other groups"] if len(named) > MAX_GROUPS else []
    return ", ".join(named[:MAX_GROUPS] + more)
