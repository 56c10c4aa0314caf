"""Tests of the metrics, on answers with known scores."""

from __future__ import annotations

import importlib
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import metrics
from data.metrics import element_counts, extract_answer, rouge_l, score
from data.records import load_records
from data.tasks import EMBEDDED_TASKS

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
    assert set(bare.values()) == {1.0}
    silent = score(task, [None] * 8, [r["raw_output"] for r in rows])
    assert set(silent.values()) == {0.0}


def test_formula() -> None:
    answers = ["OC2H6", "C2H6O", "C2H5O", "ethanol", None]
    assert score("name_conversion-i2f", answers, ["C2H6O"] * 5) == {"element_match": 0.4, "answered": 0.6}


def test_element_counts() -> None:
    assert element_counts("CCl4") == {"C": 1, "Cl": 4}
    assert element_counts("C2H3O2.Na") == {"C": 2, "H": 3, "O": 2, "Na": 1}
    assert element_counts("c2h6") is None
    assert element_counts("") is None


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

    monkeypatch.setattr(metrics.importlib, "import_module", without_rdkit)
    with caplog.at_level(logging.WARNING):
        scores = score("retrosynthesis", ["O.CC", BENZENE_KEKULE, None], ["CC.O", BENZENE, "C"])
    assert scores == {"exact_match": 1 / 3, "answered": 2 / 3}
    assert "crossfed[chemistry]" in caplog.text


def test_number() -> None:
    scores = score("property_prediction-esol", ["1.0", "-3", "much", "nan", None], ["2.0", "-3", "0", "0", "0"])
    assert scores == {"rmse": pytest.approx(math.sqrt(0.5)), "answered": 0.4}
    assert score("property_prediction-mp", ["warm"], ["80"]) == {"answered": 0.0}


def test_boolean() -> None:
    answers = ["Yes", "yes.", "No", "perhaps", None]
    assert score("property_prediction-bbbp", answers, ["Yes"] * 5) == {"accuracy": 0.4, "answered": 0.6}


def test_text() -> None:
    scores = score("molecule_captioning", ["A ring.", "a big red ring", None], ["A ring."] * 3)
    assert scores["exact_match"] == 1 / 3
    assert scores["rouge_l"] == pytest.approx((1.0 + 2 * 2 / 6) / 3)
    assert scores["answered"] == 2 / 3


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
