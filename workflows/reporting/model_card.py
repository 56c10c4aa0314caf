"""The card of the final model, ``model/README.md``: what it is, how it was made, and how well it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apps.base.files import write_text
from workflows.records.scores import GLOBAL
from workflows.reporting.loss_captions import change_text, samples_text, unit_text, within
from workflows.reporting.run_record import load_run
from workflows.reporting.run_summary import summarize

TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def write_model_card(run_dir: Path) -> None:
    """Write the card beside the final model of a run, if it is there.

    Raises:
        UserMistake: the run directory is damaged.
        StorageError: the card cannot be written.
    """
    folder = run_dir / "model"
    if folder.is_dir():
        write_text(folder / "README.md", model_card(run_dir))


def model_card(run_dir: Path) -> str:
    """Return the text of the card."""
    import jinja2

    run = load_run(run_dir)
    summary = summarize(run)
    model, training = (_section(run.campaign, name) for name in ("model", "training"))
    template = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    tasks = [
        (task, ", ".join(owners), within(run.final_losses[GLOBAL].get(task), run.final_errors[GLOBAL].get(task)))
        for task, owners in run.owners.items()
        if GLOBAL in run.models
    ]
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.campaign.get("name"),
        base=model.get("source"),
        adapter=model.get("adapter"),
        is_adapter=(run_dir / "model" / "adapter_config.json").is_file(),
        base_path=_base_path(run_dir / "model" / "adapter_config.json"),
        settings=json.dumps({key: value for key, value in training.items() if value is not None}),
        strategy=_section(run.campaign, "strategy").get("name"),
        sites=list(run.sites),
        rounds=summary.done,
        period=run.period,
        tokens=summary.tokens,
        change=change_text(summary),
        verdict=summary.verdict.text,
        samples=samples_text(run),
        unit=unit_text(run),
        prompt=_section(run.campaign, "data").get("prompt"),
        tasks=tasks,
        environment=run.environment,
    )


def _base_path(config: Path) -> str | None:
    """Return the folder that an adapter's file names as its base model; None for a name of a hub, or no adapter."""
    try:
        base = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError):
        return None
    return base if Path(base).is_absolute() else None


def _section(campaign: Any, name: str) -> dict[str, Any]:
    part = campaign.get(name)
    return part if isinstance(part, dict) else {}
