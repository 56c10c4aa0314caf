"""Reactions: textbook one-step rules applied in reverse to every molecule. They are not experiments.

A reaction is kept only if its product and every starting material are registered compounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.chemistry_build.molecules import Molecule, rdkit

MAX_PRODUCTS = 12


@dataclass(frozen=True)
class Rule:
    """A retrosynthetic rule (product >> starting materials) and the reagent in the forward question.

    Rules with a single starting material have a reagent, so that the forward question has one answer.
    """

    name: str
    smarts: str
    reagent: str | None = None


@dataclass(frozen=True)
class Reaction:
    """One rule applied to one product; all molecules by canonical SMILES, `starting` sorted."""

    rule: Rule
    starting: tuple[str, ...]
    product: str


RULES = (
    Rule("esterification", "[CX3:1](=[OX1:2])-;!@[OX2:3]-;!@[#6;!$([#6]=[O,N,S]):4]>>[C:1](=[O:2])O.[O:3][#6:4]"),
    Rule(
        "amide formation",
        "[CX3;!$(C(N)(=O)[N,O]):1](=[OX1:2])-;!@[NX3;!$(N~[#7,#8]);!$(N(C=O)C=O):3]>>[C:1](=[O:2])Cl.[N:3]",
    ),
    Rule("ether formation", "[#6;!$(C=[O,N]):1]-;!@[OX2:2]-;!@[CX4;!$(C([#8])[#8]);H1,H2,H3:3]>>[#6:1][O:2].[C:3]Br"),
    Rule("sulfide formation", "[#6:1][SX2:2]-;!@[CX4;H1,H2,H3:3]>>[#6:1][S:2].[C:3]Br"),
    Rule(
        "reductive amination",
        "[CX4;!H0;!$(C~[#8]):1]-;!@[NX3;!$(N-C=[O,S,N]);!$(N~[#7,#8,#16]):2]>>[C:1]=O.[N:2]",
        "[H][H]",
    ),
    Rule("imine formation", "[CX3;H1,$(C([#6])[#6]);!$(C[#8]):1]=;!@[NX2:2]-[#6:3]>>[C:1]=O.[N:2][#6:3]"),
    Rule("sulfonamide formation", "[SX4:1](=[O:2])(=[O:3])[NX3:4]>>[S:1](=[O:2])(=[O:3])Cl.[N:4]"),
    Rule("urea formation", "[NX3;H1:1]-;!@[CX3:2](=[OX1:3])-;!@[NX3:4]>>[N:1]=[C:2]=[O:3].[N:4]"),
    Rule("carbamate formation", "[NX3;H1:1]-;!@[CX3:2](=[OX1:3])-;!@[OX2:4][#6:5]>>[N:1]=[C:2]=[O:3].[O:4][#6:5]"),
    Rule("nitro reduction", "[c:1][NH2:2]>>[c:1][N+:2](=O)[O-]", "[H][H]"),
    Rule("nitration", "[c:1][N+](=O)[O-]>>[cH:1]", "O=[N+]([O-])O"),
    Rule("bromination", "[c:1][Br]>>[cH:1]", "BrBr"),
    Rule("alcohol oxidation", "[#6:1][CX3:2](=[OX1:3])[#6:4]>>[#6:1][C:2]([O:3])[#6:4]", "O=O"),
    Rule("ketone reduction", "[#6:1][CX4;H1:2]([OX2H:3])[#6:4]>>[#6:1][C:2](=[O:3])[#6:4]", "[H][H]"),
    Rule("aldehyde oxidation", "[#6:1][CX3:2](=[OX1:3])[OX2H]>>[#6:1][C;H1:2](=[O:3])", "O=O"),
    Rule("nitrile hydrolysis", "[#6:1][CX3:2](=O)[OX2H]>>[#6:1][C:2]#N", "O"),
    Rule("acid chlorination", "[#6:1][CX3:2](=[O:3])Cl>>[#6:1][C:2](=[O:3])O", "O=S(Cl)Cl"),
    Rule("alcohol bromination", "[CX4:1][Br]>>[C:1]O", "BrP(Br)Br"),
)

# Canonical SMILES, like the molecules' keys.
REAGENTS = frozenset(rule.reagent for rule in RULES if rule.reagent)


def find_reactions(molecules: Mapping[str, Molecule]) -> list[Reaction]:
    """Return every reaction of a rule between registered molecules."""
    return [reaction for rule in RULES for reaction in _reactions_of(rule, molecules)]


def _reactions_of(rule: Rule, molecules: Mapping[str, Molecule]) -> Iterator[Reaction]:
    retro = rdkit("Chem.AllChem").ReactionFromSmarts(rule.smarts)
    pattern = retro.GetReactantTemplate(0)
    for key, molecule in molecules.items():
        if not molecule.mol.HasSubstructMatch(pattern):
            continue
        seen: set[tuple[str, ...]] = set()
        for fragments in retro.RunReactants((molecule.mol,), maxProducts=MAX_PRODUCTS):
            starting = _canonical(fragments)
            if starting is None or starting in seen or key in starting:
                continue
            seen.add(starting)
            if all(s in molecules for s in starting):
                yield Reaction(rule, starting, key)


def _canonical(fragments: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Return the sorted canonical SMILES of the fragments of a rule, None if rdkit rejects one."""
    chem = rdkit()
    try:
        for fragment in fragments:
            chem.SanitizeMol(fragment)
    except chem.MolSanitizeException:
        return None
    return tuple(sorted(chem.MolToSmiles(fragment) for fragment in fragments))
