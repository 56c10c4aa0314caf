"""Tests of the metrics, on answers with known scores."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import molecules
from data.metrics import element_counts, extract_answer, right_answers, score
from data.records import load_records
from data.tasks import EMBEDDED_TASKS
from data.text_overlap import rouge_l

BENZENE, BENZENE_KEKULE, TOLUENE = "c1ccccc1", "C1=CC=CC=C1", "Cc1ccccc1"


def test_answer_stands_between_the_tags() -> None:
    assert extract_answer("It is <NUMBER> -1.5 </NUMBER>.", "property_prediction-esol") == "-1.5"
    assert extract_answer("<SMILES> C </SMILES> or <SMILES> N </SMILES>", "retrosynthesis") == "C"
    assert extract_answer("x</B> <B> y </B>", ("<B>", "</B>")) == "y"
    assert extract_answer("  An alcohol. ", "molecule_captioning") == "An alcohol."


@pytest.mark.parametrize("text", ["", "-1.5", "<NUMBER> 1", "1 </NUMBER>", "<NUMBER>  </NUMBER>"])
def test_no_answer_without_both_tags(text: str) -> None:
    assert extract_answer(text, "property_prediction-esol") is None


def test_every_embedded_answer_is_found_again() -> None:
    for row in load_records("embedded", "test"):
        assert extract_answer(row["output"], row["task"]) == row["raw_output"]


@pytest.mark.parametrize("task", EMBEDDED_TASKS)
def test_right_answers_score_full_marks_with_or_without_tags(task: str) -> None:
    rows = load_records("embedded", "test", [task], per_task=8)
    bare = score(task, [r["raw_output"] for r in rows], [r["raw_output"] for r in rows])
    assert bare == score(task, [r["output"] for r in rows], [[r["output"]] for r in rows])
    assert bare.pop("rmse", 0.0) == 0.0
    assert bare.pop("meteor_no_synonyms", 1.0) > 0.99  # one chunk of words still has a small penalty
    assert set(bare.values()) == {1.0}
    silent = score(task, [None] * 8, [r["raw_output"] for r in rows])
    assert set(silent.values()) == {0.0}


def test_formula() -> None:
    answers = ["OC2H6", "C2H6O", "C2H5O", "ethanol", None]
    assert score("name_conversion-i2f", answers, ["C2H6O"] * 5) == {"element_match": 0.4, "answered": 0.6}


@pytest.mark.parametrize("formula", ["C6H14N+", "C2O4-2", "Cl-", "C2H3O2-;Na+", "Cu(NH3)4+2", "[Fe(CN)6]-3"])
def test_the_formula_of_an_ion_is_right_with_its_charge_only(formula: str) -> None:
    without = formula.rstrip("+-0123456789")
    scores = score("name_conversion-s2f", [formula, without], [formula, formula])
    assert scores == {"element_match": 0.5, "answered": 1.0}


def test_element_counts() -> None:
    assert element_counts("CCl4") == {"C": 1, "Cl": 4}
    assert element_counts("C2H3O2.Na") == {"C": 2, "H": 3, "O": 2, "Na": 1}
    assert element_counts("C2H3O2-.Na+") == {"C": 2, "H": 3, "O": 2, "Na": 1}  # neutral as a whole
    assert element_counts("(CH3)2CO") == {"C": 3, "H": 6, "O": 1}
    assert element_counts("Ca(B(OH)4)2-2") == {"Ca": 1, "B": 2, "O": 8, "H": 8, "charge": -2}
    assert element_counts("SO4--") == {"S": 1, "O": 4, "charge": -2}
    for text in ("c2h6", "", "C(H", "CH)", "+", "C2H6 or so", "2", "C+H"):
        assert element_counts(text) is None


def test_name_parts_may_come_in_any_order() -> None:
    scores = score(
        "name_conversion-s2i", ["sodium; acetate", "acetate", None, "Acetate;sodium"], ["acetate;sodium"] * 4
    )
    assert scores == {"split_match": 0.25, "answered": 0.75}


def test_smiles_with_rdkit() -> None:
    pytest.importorskip("rdkit")
    answers = [BENZENE_KEKULE, TOLUENE, "c1ccccc", None]
    scores = score("molecule_generation", answers, [BENZENE] * 4)
    assert scores["exact_match"] == 0.25
    assert scores["validity"] == 0.5
    assert scores["answered"] == 0.75
    assert 0.5 < scores["morgan_tanimoto"] < 1.0
    alone = score("molecule_generation", [TOLUENE], [BENZENE])["morgan_tanimoto"]
    assert math.isclose(scores["morgan_tanimoto"], (1.0 + alone) / 2)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [  # what the definition says of mixtures, salts and ways of writing
        ("CCO.CCO", "CCO", True),
        ("C[NH3+].[Cl-]", "CN.Cl", False),
        ("CC(=O)[O-].[Na+]", "CC(=O)O[Na]", False),
        ("CC(=O)[O-].C[NH3+]", "CC(=O)O.CN", False),
        ("C[N+](C)(C)C.[I-]", "[I-].C[N+](C)(C)C", True),
        ("[CH3:1][OH:2]", "CO", True),
        ("OC1=CC=CC=N1", "O=C1C=CC=CN1", True),
        ("C/C=C/C", "C/C=C\\C", False),
    ],
)
def test_the_same_molecules_are_those_with_the_same_set_of_inchis(answer: str, gold: str, same: bool) -> None:
    pytest.importorskip("rdkit")
    scores = score("name_conversion-i2s", [answer], [gold])
    assert (scores["exact_match"], scores["validity"]) == (float(same), 1.0)


def test_an_answer_with_an_empty_part_is_not_valid() -> None:
    pytest.importorskip("rdkit")
    assert score("forward_synthesis", ["CCO.", "CCO"], ["CCO", "CCO"])["validity"] == 0.5


def test_fingerprints_are_those_of_rdkit() -> None:
    """Morgan: unfolded counts of radius 2, as rdkit's older GetMorganFingerprint makes them."""
    pytest.importorskip("rdkit")
    from rdkit import Chem, DataStructs, rdBase
    from rdkit.Chem import AllChem, MACCSkeys

    one, other = Chem.MolFromSmiles("CCOc1ccccc1"), Chem.MolFromSmiles("CCOC(=O)CC")
    with rdBase.BlockLogs():
        morgan = DataStructs.TanimotoSimilarity(
            AllChem.GetMorganFingerprint(one, 2), AllChem.GetMorganFingerprint(other, 2)
        )
    scores = score("molecule_generation", ["CCOc1ccccc1"], ["CCOC(=O)CC"])
    assert scores["morgan_tanimoto"] == morgan
    assert scores["maccs_tanimoto"] == DataStructs.TanimotoSimilarity(
        MACCSkeys.GenMACCSKeys(one), MACCSkeys.GenMACCSKeys(other)
    )
    assert scores["rdk_tanimoto"] == DataStructs.TanimotoSimilarity(
        Chem.RDKFingerprint(one), Chem.RDKFingerprint(other)
    )


def test_a_retrosynthesis_counts_shared_reactants() -> None:
    pytest.importorskip("rdkit")
    scores = score("retrosynthesis", ["CCO", "CCO.CCC", "CCC", None], ["CCO.CN"] * 4)
    assert (scores["exact_match"], scores["partial_match"], scores["subset_match"]) == (0.0, 0.5, 0.25)


def test_components_may_come_in_any_order_and_with_either_separator() -> None:
    pytest.importorskip("rdkit")
    scores = score("retrosynthesis", ["O.CC", "CC;O"], ["CC.O", "O.CC"])
    assert scores["exact_match"] == 1.0


def test_the_best_of_several_right_answers_counts() -> None:
    pytest.importorskip("rdkit")
    scores = score("retrosynthesis", ["CCO"], [["CCCCC", "OCC"]])
    assert scores["exact_match"] == scores["morgan_tanimoto"] == 1.0


def test_smiles_without_rdkit(monkeypatch, caplog) -> None:
    original = importlib.import_module

    def without_rdkit(name: str):
        if name.startswith("rdkit"):
            raise ModuleNotFoundError(name)
        return original(name)

    monkeypatch.setattr(molecules.importlib, "import_module", without_rdkit)
    with caplog.at_level(logging.WARNING):
        scores = score("retrosynthesis", ["O.CC", BENZENE_KEKULE, None], ["CC.O", BENZENE, "C"])
    assert scores == {"exact_match": 1 / 3, "answered": 2 / 3}
    assert "crossfed[chemistry]" in caplog.text


def test_number() -> None:
    scores = score("property_prediction-esol", ["1.0", "-3", "much", "nan", None], ["2.0", "-3", "0", "0", "0"])
    assert scores == {"rmse": pytest.approx(math.sqrt(0.5)), "answered": 0.4}
    assert score("property_prediction-mp", ["warm"], ["80"]) == {"answered": 0.0}


def test_boolean() -> None:
    answers = ["Yes", " yes", "No", "perhaps", "true", "yes.", None]
    scores = score("property_prediction-bbbp", answers, ["Yes"] * 7)
    assert scores == {"accuracy": pytest.approx(2 / 7), "answered": pytest.approx(3 / 7)}


def test_the_frequent_answer_alone_has_no_mcc_and_no_f1() -> None:
    scores = score("property_prediction-hiv", ["No"] * 1000, ["No"] * 965 + ["Yes"] * 35)
    assert (scores["accuracy"], scores["mcc"], scores["f1"], scores["roc_auc"]) == (0.965, 0.0, 0.0, 0.5)


def test_class_scores_of_a_known_table() -> None:
    """3 true and 1 false positives, 2 false and 4 true negatives; the formulas of the textbooks."""
    answers = ["Yes"] * 4 + ["No"] * 6 + ["perhaps"]
    golds = ["Yes"] * 3 + ["No"] + ["Yes"] * 2 + ["No"] * 4 + ["No"]
    scores = score("property_prediction-clintox", answers, golds)
    assert scores["mcc"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert scores["f1"] == pytest.approx(6 / (6 + 1 + 2))
    assert (scores["precision"], scores["recall"]) == (0.75, 0.6)
    assert scores["accuracy"] == pytest.approx(7 / 11)


def test_a_question_about_each_side_effect_has_an_answer_of_its_own() -> None:
    """SIDER asks twenty questions about one molecule: a right answer is right for its own question only."""
    golds = ["Yes", "No"] * 10
    molecule = ["CCO"] * 20
    assert score("property_prediction-sider", ["Yes"] * 20, golds, molecule)["accuracy"] == 0.5
    wrong = ["No" if gold == "Yes" else "Yes" for gold in golds]
    assert score("property_prediction-sider", wrong, golds, molecule)["accuracy"] == 0.0
    assert score("property_prediction-esol", ["-1", "-1"], ["-1", "-3"], ["CCO"] * 2)["rmse"] == math.sqrt(2)


def test_right_answers_are_those_of_all_samples_of_a_question() -> None:
    def sample(task: str, question: str, answer: str, target: str | None = None) -> Any:
        return {"task": task, "raw_input": question, "raw_output": answer, "target": target}

    found = right_answers(
        [
            sample("retrosynthesis", "CCO", "C.O"),
            sample("retrosynthesis", "CCO", "CC"),
            sample("forward_synthesis", "CCO", "N"),
            sample("property_prediction-sider", "CCO", "Yes", "liver"),
            sample("property_prediction-esol", "CCO", "-1"),
            sample("my_own_task", "CCO", "x"),
        ]
    )
    assert found == {
        ("retrosynthesis", "CCO", None): ["C.O", "CC"],
        ("forward_synthesis", "CCO", None): ["N"],
    }


def test_text() -> None:
    scores = score("molecule_captioning", ["A ring.", "a big red ring", None], ["A ring."] * 3)
    assert scores["exact_match"] == 1 / 3
    assert scores["rouge_l"] == pytest.approx((1.0 + 2 * 2 / 6) / 2)  # over the answers
    assert scores["rouge_1"] == scores["rouge_l"]
    assert scores["rouge_2"] == 0.5
    assert scores["answered"] == 2 / 3
    assert score("molecule_captioning", [None], ["A ring."]) == {"exact_match": 0.0, "answered": 0.0}


def test_bleu_and_meteor_of_known_sentences() -> None:
    pytest.importorskip("nltk")
    scores = score("molecule_captioning", ["a b c d"], ["a b c d e"])
    assert scores["bleu_2"] == scores["bleu_4"] == pytest.approx(math.exp(1 - 5 / 4))  # the brevity penalty alone
    # The example of Banerjee and Lavie 2005: 4 of 5 words, one chunk; F = 10 P R / (R + 9 P), penalty 0.5 (1/4)^3.
    precision, recall = 1.0, 4 / 5
    mean = 10 * precision * recall / (recall + 9 * precision)
    assert scores["meteor_no_synonyms"] == pytest.approx(mean * (1 - 0.5 * (1 / 4) ** 3))
    assert score("molecule_captioning", ["rings"], ["ring"])["meteor_no_synonyms"] > 0.4  # the same stem
    assert score("molecule_captioning", ["x"], ["a b"])["bleu_2"] == 0.0


def test_rouge_l_known_values() -> None:
    # The example of Lin 2004, section 3.
    assert rouge_l("police kill the gunman", "police killed the gunman") == 0.75
    assert rouge_l("the gunman kill police", "police killed the gunman") == 0.5
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("", "") == 0.0


words = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)


@given(words, words)
def test_rouge_l_is_symmetric_and_bounded(one: str, other: str) -> None:
    value = rouge_l(one, other)
    assert 0.0 <= value <= 1.0
    assert value == rouge_l(other, one)
    assert (value == 1.0) == (one == other and one != "")


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=20))
def test_rmse_lies_between_smallest_and_largest_error(pairs: list[tuple[float, float]]) -> None:
    given_values, right = zip(*pairs, strict=True)
    rmse = score("property_prediction-esol", [repr(x) for x in given_values], [repr(x) for x in right])["rmse"]
    errors = [abs(x - y) for x, y in pairs]
    assert min(errors) - 1e-9 <= rmse <= max(errors) + 1e-9


def test_samples_of_one_question_share_their_right_answers() -> None:
    answers, golds = ["CO", "CC"], ["CC", "CO"]
    assert score("retrosynthesis", answers, golds)["exact_match"] == 0.0
    assert score("retrosynthesis", answers, golds, inputs=["x", "x"])["exact_match"] == 1.0
    assert score("retrosynthesis", answers, golds, inputs=["x", "y"])["exact_match"] == 0.0


def test_lists_of_different_lengths_are_refused() -> None:
    for predictions, golds, inputs in ((["a"], [], None), ([], [], None), (["a"], ["b"], ["c", "d"])):
        with pytest.raises(ValueError, match="the same number"):
            score("retrosynthesis", predictions, golds, inputs)
    with pytest.raises(ValueError, match="no reference"):
        score("retrosynthesis", ["a"], [[]])
    with pytest.raises(ValueError, match="no metric is known"):
        score("poetry", ["a"], ["a"])
