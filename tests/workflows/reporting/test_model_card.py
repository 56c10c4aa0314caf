"""The card of the final model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import finished_run

from workflows.reporting.model_card import write_model_card


@pytest.mark.parametrize(("base", "named"), [("/cache/smollm2-135m-instruct", True), ("organisation/model", False)])
def test_a_base_model_that_is_named_by_a_path_is_explained(tmp_path: Path, base: str, named: bool) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=1).write()
    (folder / "model").mkdir()
    (folder / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    write_model_card(folder)
    card = (folder / "model" / "README.md").read_text()
    assert (f"`{base}`" in card and "PeftModel.from_pretrained(base, folder)" in card) == named


def test_a_whole_model_has_no_base_to_find(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=1).write()
    (folder / "model").mkdir()
    write_model_card(folder)
    assert "PeftModel" not in (folder / "model" / "README.md").read_text()
