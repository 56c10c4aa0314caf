"""A finished run with all its files, written without a training, for tests and benchmarks of its verification."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from campaigns import nano

from apps.artifacts.store import Artifact
from apps.base.identity import Place
from apps.training.task import task_identity
from apps.trust.keys import private_key, public_key
from apps.trust.orders import read_order
from apps.trust.signed import ENROLMENT, MANIFEST
from apps.trust.site_answers import sign_answer
from workflows.planning.campaign_file import load_campaign
from workflows.records.journal import Journal
from workflows.records.metrics import MetricsFile
from workflows.records.run_directory import RunDirectory, open_new
from workflows.trust.calls import SiteCall
from workflows.trust.edge import Edge
from workflows.trust.orders import Orders
from workflows.trust.site_keys import SiteKeys

SITES = ("aurora", "frontier")
TASK = "forward_synthesis"
ENROL, TRAIN = "apps.train:enrol", "apps.train:local_train"
WORK = {"code_version": "abc", "model": {}, "data": {}, "parallel": {}, "seed": 1, "threads": 1}
SHARD = {"samples": 12, "shard_sha256": "5" * 64}


def write_run(path: Path, rounds: int, nbytes: int) -> Path:
    """Write a run directory.

    Args:
        path: of the run.
        rounds: of its campaign.
        nbytes: of each model and update.
    """
    source = path.parent / f"{path.name}.yaml"
    source.write_text(yaml.safe_dump(nano(rounds=rounds)))
    run = open_new(path, load_campaign(source), source, [], None)
    chance, key, campaign = random.Random(rounds), private_key(path.parent / "keys" / "driver.key"), run.opened["token"]
    run.journal.write("driver_started", key=public_key(key))
    edge = Edge(Orders(run.journal, campaign, path.name, key), SiteKeys(run.journal, campaign, {}, path))
    for site in SITES:
        _task(run, "enrol", site, 0, **signed_answer(edge, ENROL, path, Place(site=site, round=0), SHARD))
    _task(run, "prepare", "server", 0, artifact=_artifact(run, chance, nbytes))
    for number in range(1, rounds + 1):
        for site in SITES:
            update = _artifact(run, chance, nbytes)
            result = {"artifact": update, "loss_last": chance.random(), "samples": 12, "tokens": 700, "train_s": 0.2}
            result = signed_answer(edge, TRAIN, path, Place(site=site, round=number), result)
            _task(run, "local_train", site, number, **result)
            _task(run, "stage_in", site, number, artifact=update, manifest=result)
        model = _artifact(run, chance, nbytes)
        _task(run, "aggregate", "server", number, artifact=model, sent=None, state=None)
        score = {TASK: {"loss": chance.random(), "samples": 1, "tokens": 24, "standard_error": None}}
        _task(run, "evaluate", "evaluator", number, artifact=model, who="global", tasks=score)
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}\n")
    files = {"config.json": hashlib.sha256(b"{}\n").hexdigest()}
    _task(run, "save_model", "server", rounds, artifact=model, files=files)
    MetricsFile(run.path / "metrics.csv", run.journal).write()
    run.journal.write("campaign_finished", rounds=rounds, seconds=1.0)
    run.close()
    return run.path


def _artifact(run: RunDirectory, chance: random.Random, nbytes: int) -> Artifact:
    content = chance.randbytes(nbytes)
    sha256 = hashlib.sha256(content).hexdigest()
    run.artifacts.mkdir(exist_ok=True)
    (run.artifacts / f"{sha256}.safetensors").write_bytes(content)
    return Artifact(sha256=sha256, nbytes=nbytes, kind="model")


def signed_answer(edge: Edge, function: str, path: Path, place: Place, values: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of a site, on the way from the driver's order to the check of the signature."""
    assert edge.keys is not None
    root, base = path.parent / "storage" / path.name / place["site"], {"artifact": {"sha256": "6" * 64}}
    request: Any = {"training": {}, "optimizer_from": None}
    arguments: tuple[Any, ...] = (place, {**WORK, "root": str(root)}, request, base, SHARD)
    trains = function == TRAIN
    call = SiteCall(place["site"], function, arguments if trains else arguments[:2])
    order = read_order(json.loads(edge.text(call)), time.time())
    assert order is not None
    values = {**values, **_times(place["round"]), **({"task_id": task_identity(*arguments)} if trains else {})}
    answer = {**values, "signed": sign_answer(MANIFEST if trains else ENROLMENT, values, root, order.facts)}
    edge.keys.check(call, answer)
    return answer


def _times(number: int) -> dict[str, float]:
    return {"started": 1.5 + number, "ended": 2.25 + number}


def _task(run: RunDirectory, app: str, site: str, number: int, **result: Any) -> None:
    times = _times(number)
    where = {"app": app, "site": site, "round": number, "key": f"{app}-{site}-{number}", "depends": []}
    run.journal.write("task_done", **where, **times, result={**result, **times, "store": str(run.artifacts)})


def covered_files(run_dir: Path) -> list[Path]:
    """Return the files of a run that its verification covers."""
    folders = [run_dir / name for name in ("artifacts", "manifests", "model")]
    named = [run_dir / name for name in ("journal.jsonl", "campaign.yaml", "metrics.csv")]
    return sorted([*named, *(path for folder in folders for path in folder.rglob("*") if path.is_file())])


def changed_bytes(run_dir: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Change one byte of one file at a time, and restore it after each; yield the file and the place.

    Half of the changes are in the artifacts, where nearly all bytes are, the others in any covered file.
    """
    chance, files = random.Random(seed), covered_files(run_dir)
    others = [path for path in files if path.parent.name != "artifacts"]
    for number in range(count):
        path = chance.choice(files if number % 2 else others)
        content = bytearray(path.read_bytes())
        place = chance.randrange(len(content))
        before = bytes(content)
        content[place] ^= chance.randrange(1, 256)
        path.write_bytes(content)
        yield path, place
        path.write_bytes(before)


def rewritten(run_dir: Path, copy: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """Return a copy of a run whose journal was changed by somebody who knows how its lines are chained."""
    shutil.copytree(run_dir, copy)
    records = list(Journal(copy / "journal.jsonl").records)
    change(records)
    (copy / "journal.jsonl").unlink()
    journal = Journal(copy / "journal.jsonl")
    for record in records:
        journal.write(record["event"], **{k: v for k, v in record.items() if k not in ("seq", "event", "chain")})
    journal.close()
    return copy
