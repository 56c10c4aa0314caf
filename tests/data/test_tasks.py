"""Tests of names, families, metrics and phrasings of the tasks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tasks import (
    CANONICAL_ORDER,
    EMBEDDED_FAMILIES,
    EMBEDDED_TASKS,
    FAMILIES,
    FIELDS,
    SMOLINSTRUCT_FAMILIES,
    SMOLINSTRUCT_METRICS,
    expand_tasks,
    family_of,
    in_canonical_order,
    metric_kind,
    output_tags,
    record,
)

PUBLIC = [task for names in SMOLINSTRUCT_FAMILIES.values() for task in names]


def test_both_sets_have_fourteen_tasks_in_the_four_families() -> None:
    assert len(EMBEDDED_TASKS) == 14
    assert len(PUBLIC) == len(set(PUBLIC)) == 14
    assert tuple(EMBEDDED_FAMILIES) == tuple(SMOLINSTRUCT_FAMILIES) == FAMILIES
    assert set(SMOLINSTRUCT_METRICS) == set(PUBLIC)
    assert [t for f in FAMILIES for t in EMBEDDED_FAMILIES[f]] == list(EMBEDDED_TASKS)


def test_fields_are_those_of_the_public_set() -> None:
    assert len(FIELDS) == 12
    assert FIELDS[:4] == ("input", "output", "raw_input", "raw_output")
    assert FIELDS[-1] == "sample_id"


@pytest.mark.parametrize("task", EMBEDDED_TASKS.values(), ids=lambda task: task.id)
def test_every_phrasing_has_its_placeholder_once(task) -> None:
    assert all(question.count("<INPUT>") == 1 for question in task.questions)
    assert all(answer.count("<OUTPUT>") == 1 for answer in task.answers)
    assert len(set(task.questions)) == len(task.questions) >= 2
    assert task.family == family_of(task.id)


def test_expand_takes_families_and_ids_in_any_order() -> None:
    assert expand_tasks(["retrosynthesis", "molecule_description"], "embedded") == (
        "molecule_captioning",
        "molecule_generation",
        "retrosynthesis",
    )
    assert (
        expand_tasks(["name_conversion", "name_conversion-i2f"], "embedded") == (EMBEDDED_FAMILIES["name_conversion"])
    )


def test_expand_depends_on_the_source(tmp_path) -> None:
    assert "property_prediction-lipo" in expand_tasks(["property_prediction"], "/some/data.zip")
    assert "property_prediction-logp" in expand_tasks(["property_prediction"], "embedded")
    with pytest.raises(ValueError, match="property_prediction-lipo"):
        expand_tasks(["property_prediction-lipo"], "embedded")
    (tmp_path / "manifest.json").write_text("{}")
    assert expand_tasks(["property_prediction"], str(tmp_path)) == EMBEDDED_FAMILIES["property_prediction"]


def test_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean 'retrosynthesis'") as error:
        expand_tasks(["retrosyntesis"], "embedded")
    assert "'retrosyntesis'" in str(error.value)


def test_metric_kinds_and_tags() -> None:
    assert metric_kind("name_conversion-s2i") == "name"
    assert metric_kind("property_prediction-sider") == "boolean"
    assert metric_kind("property_prediction-logp") == "number"
    assert output_tags("property_prediction-lipo") == ("<NUMBER>", "</NUMBER>")
    assert output_tags("molecule_captioning") == (None, None)
    with pytest.raises(ValueError, match="no metric is known"):
        metric_kind("poetry")


def test_record_combines_tags_and_phrasings() -> None:
    made = record("name_conversion-s2f", "CCO", "C2H6O", "train", question=5, answer=3, sample_id="x")
    assert tuple(made) == FIELDS
    assert made["input"] == "Write the formula for <SMILES> CCO </SMILES>."
    assert made["output"] == "The formula is <MOLFORMULA> C2H6O </MOLFORMULA>."
    plain = record("molecule_captioning", "CCO", "An alcohol.", "test", 0, 0, "y")
    assert plain["output"] == "An alcohol."
    assert plain["output_core_tag_left"] is None


@given(st.lists(st.sampled_from([*CANONICAL_ORDER, "zebra", "ant"])))
def test_canonical_order_does_not_depend_on_the_given_order(names: list[str]) -> None:
    ordered = in_canonical_order(names)
    assert set(ordered) == set(names)
    assert len(set(ordered)) == len(ordered)
    assert ordered == in_canonical_order(reversed(names))
    known = [name for name in ordered if name in CANONICAL_ORDER]
    assert known == sorted(known, key=CANONICAL_ORDER.index)
    assert list(ordered[: len(known)]) == known


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import data.tasks, data.records, data.metrics, apps.training.shard, data.build_chemistry, sys; "
        "print([m for m in ('torch', 'rdkit', 'tokenizers', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
