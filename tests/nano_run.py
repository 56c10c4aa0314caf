"""A finished run with a model of about ten thousand parameters, made without a campaign, for tests that read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from campaigns import nano

from apps.models.batches import DataSpec, collate
from apps.models.encoding import encode
from apps.models.loss import mean_loss
from apps.models.model import Model, load_first_model, save_for_users
from data.records import load_records
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import settle_dtype
from workflows.planning.plan import model_spec

TASK = "property_prediction-liquid"
LESSON = "<BOOLEAN> Yes </BOOLEAN>"  # the trained model's answer to every question


def nano_campaign(**changes: Any) -> dict[str, Any]:
    """Return the settings of a campaign on one task at one site."""
    data = {"tasks": [TASK], "per_task": 16}
    return nano(data=data, sites={"polaris": {"config": "local", "tasks": [TASK]}}, **changes)


def first_model(settings: dict[str, Any]) -> Model:
    """Return the initial model of such a campaign."""
    return load_first_model(model_spec(settle_dtype(Campaign.model_validate(settings))))


def write_run(folder: Path, steps: int = 200, **changes: Any) -> Path:
    """Write a run directory with the campaign and its trained model."""
    settings = nano_campaign(**changes)
    folder.mkdir(parents=True)
    (folder / "campaign.yaml").write_text(yaml.safe_dump(settings))
    model = first_model(settings)
    teach(model, steps)
    save_for_users(model, folder / "model")
    return folder


def write_base(folder: Path, layers: int = 1) -> dict[str, Any]:
    """Write a base model; return the section of a campaign that puts an adapter on its last layer."""
    tiny = {"source": "tiny", "tiny": {"width": 32, "layers": layers}}
    save_for_users(first_model(nano_campaign(model=tiny)), folder)
    adapter = {"method": "fedit", "rank": 4, "alpha": 16, "last_layers": 1}
    return {"source": str(folder), "dtype": "float32", "adapter": adapter}


def teach(model: Model, steps: int) -> None:
    """Train a model on one answer to every question."""
    import torch

    spec = DataSpec(
        source="embedded", tasks=[TASK], per_task=16, max_tokens=128, prompt="Q: {input}\nA:", loss_on="answer"
    )
    records = [{**record, "output": LESSON} for record in load_records("embedded", "train", [TASK], 16)]
    pad: Any = model.tokenizer.pad_token_id
    batch = collate(encode(records, model.tokenizer, spec), pad)
    optimizer = torch.optim.AdamW(model.trained.values(), lr=0.01)
    model.network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(model.network, batch).backward()
        optimizer.step()


def write_journal(folder: Path, *events: dict[str, Any]) -> None:
    lines = [json.dumps({"seq": n, "time": float(n), **event}, separators=(",", ":")) for n, event in enumerate(events)]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
