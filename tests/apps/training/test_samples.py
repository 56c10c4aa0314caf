"""Samples of a shard: only drawn ones are read, each is verified, and damage is repaired or reported."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from campaigns import PROJECT

from apps.base.errors import StorageError, UserMistake
from apps.models.batches import DataSpec
from apps.models.encoding import count_cuts, encode
from apps.models.model import load_tokenizer
from apps.training.samples import ShardSamples, shard_cuts, written_shard
from apps.training.shard import enrolled_shard, open_shard
from apps.training.shard_index import DamagedShardError, ShardReader, index_path
from data.records import canonical_line, load_records

TASKS = ["forward_synthesis", "retrosynthesis"]
DATA: DataSpec = {
    "source": "embedded",
    "tasks": TASKS,
    "per_task": 20,
    "max_tokens": 128,
    "prompt": "Q: {input}\nA:",
    "loss_on": "answer",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer({"source": "tiny"})


def whole_shard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record each reading of a whole shard."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return open_shard(*arguments)

    monkeypatch.setattr("apps.training.samples.open_shard", counted)
    return calls


def test_samples_are_those_of_the_whole_shard_in_any_order(tmp_path: Path, tokenizer: Any) -> None:
    shard = written_shard(tmp_path, DATA)
    samples = ShardSamples(tmp_path, shard.sha256, tokenizer, DATA)
    every = encode(load_records("embedded", "train", TASKS, 20), tokenizer, DATA)
    assert len(samples) == 40
    assert samples.take([31, 3, 3, 0, 39]) == [every[number] for number in (31, 3, 3, 0, 39)]


def test_nothing_reads_the_whole_shard_after_enrolment(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = written_shard(tmp_path, DATA)
    calls = whole_shard(monkeypatch)
    for _ in range(3):
        ShardSamples(tmp_path, shard.sha256, tokenizer, DATA).take([1, 2])
    assert not calls


@pytest.mark.parametrize("spoil", ["record", "record, same size and time", "index", "no index", "no shard", "cut"])
def test_damage_is_found_where_it_is_read_and_repaired(
    spoil: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = written_shard(tmp_path, DATA)
    good = ShardSamples(tmp_path, shard.sha256, tokenizer, DATA).take([5, 6])
    path = index_path(shard.path) if "index" in spoil else shard.path
    before, content = path.stat(), path.read_bytes()
    if spoil.startswith("no "):
        path.unlink()
    elif spoil == "cut":
        path.write_bytes(content[:-100])
    else:
        at = content.index(b"\n", len(content) // 8) + 40 if path == shard.path else len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        if "same" in spoil:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    calls = whole_shard(monkeypatch)
    samples = ShardSamples(tmp_path, shard.sha256, tokenizer, DATA)
    assert samples.take([5, 6]) == good
    assert samples.take(range(40)) == encode(load_records("embedded", "train", TASKS, 20), tokenizer, DATA)
    assert calls
    assert path.read_bytes() == content


def test_a_shard_that_was_copied_is_verified_once_again(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = written_shard(tmp_path, DATA)
    os.utime(shard.path)
    calls = whole_shard(monkeypatch)
    for _ in range(3):
        ShardSamples(tmp_path, shard.sha256, tokenizer, DATA).take([0])
    assert len(calls) == 1


def records_folder(folder: Path, count: int, start: int = 0) -> DataSpec:
    folder.mkdir(exist_ok=True)
    records = load_records("embedded", "train", TASKS, count // 2)
    lines = [canonical_line({**r, "sample_id": f"{start + k}"}) for k, r in enumerate(records)]  # type: ignore[typeddict-item]
    (folder / "train.jsonl").write_text("".join(lines))
    return {**DATA, "source": str(folder), "per_task": None}


def test_records_that_changed_since_enrolment_are_the_users_mistake(tmp_path: Path, tokenizer: Any) -> None:
    data = records_folder(tmp_path / "source", 8)
    shard = written_shard(tmp_path / "site", data)
    records_folder(tmp_path / "source", 8, start=1)
    with pytest.raises(UserMistake, match="have changed since it enrolled"):
        ShardSamples(tmp_path / "site", shard.sha256, tokenizer, data)
    (tmp_path / "source" / "train.jsonl").unlink()
    (tmp_path / "source").rmdir()
    assert written_shard(tmp_path / "site", data).sha256 != shard.sha256  # a source that is gone is not needed


def test_a_shard_is_not_opened_for_another_request(tmp_path: Path) -> None:
    shard = written_shard(tmp_path, DATA)
    with pytest.raises(DamagedShardError):
        enrolled_shard(tmp_path, "embedded", TASKS, 19, shard.sha256)


def test_several_ranks_repair_at_once(tmp_path: Path, tokenizer: Any) -> None:
    shard = written_shard(tmp_path, DATA)
    expected = ShardSamples(tmp_path, shard.sha256, tokenizer, DATA).take([7])
    shard.path.write_bytes(shard.path.read_bytes()[:-50])
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: ShardSamples(tmp_path, shard.sha256, tokenizer, DATA).take([7]), range(8))
        assert all(samples == expected for samples in found)


def test_a_full_disk_is_a_fault_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data.files.os.fsync", full)
    with pytest.raises(StorageError, match="cannot write: No space left on device"):
        written_shard(tmp_path, DATA)
    assert list((tmp_path / "shard").iterdir()) == []


def test_cut_samples_are_counted_by_task_and_part(tmp_path: Path, tokenizer: Any) -> None:
    shard = written_shard(tmp_path, DATA)
    assert shard_cuts(shard, lambda: tokenizer, DATA, 1) == {}
    short: DataSpec = {**DATA, "max_tokens": 32}
    cuts = shard_cuts(shard, lambda: tokenizer, short, 2)
    samples = encode(load_records("embedded", "train", TASKS, 20), tokenizer, short)
    for task in TASKS:
        own = [s for s in samples if s.task == task]
        assert cuts[task]["question"] == sum(s.question_cut for s in own) > 0
        assert cuts[task]["answer"] == sum(s.answer_cut for s in own) > 0


def test_samples_that_cannot_be_too_long_are_not_tokenised(tokenizer: Any) -> None:
    records = [{"input": "q" * 100, "output": "a", "task": "t"}]
    spec: DataSpec = {**DATA, "max_tokens": 120}
    assert count_cuts(records, lambda: pytest.fail("loaded the tokenizer"), spec, 1) == {}
    longest = max(len(encode(records, tokenizer, {**spec, "max_tokens": 10_000})[0].tokens), 1)
    assert longest <= 120


# -- cost of a round --------------------------------------------------------------------------------------------------

ROUND = """
import json, resource, sys
from pathlib import Path
from apps.models.batches import iter_batches
from apps.models.model import load_tokenizer
from apps.training.samples import ShardSamples

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])

root, sha256, data = json.loads(sys.argv[1])
tokenizer = load_tokenizer({"source": "tiny"})
tokenizer(["warm up"])
before = resident(), bytes_read(), resource.getrusage(resource.RUSAGE_SELF)
samples = ShardSamples(Path(root), sha256, tokenizer, data)
for batch in iter_batches(samples, 8, 16, 1):
    pass
after = resource.getrusage(resource.RUSAGE_SELF)
grown = max(resident(), after.ru_maxrss * 1024) - max(before[0], before[2].ru_maxrss * 1024)
print(json.dumps([grown, bytes_read() - before[1], after.ru_utime - before[2].ru_utime]))
"""


def round_cost(root: Path, records: int) -> tuple[int, int]:
    """Return how many bytes a rank grows by and reads, from a fresh process."""
    source = root / "source"
    source.mkdir(parents=True)
    some = load_records("embedded", "train", TASKS)
    with open(source / "train.jsonl", "w") as lines:
        for number in range(records):
            lines.write(canonical_line({**some[number % len(some)], "sample_id": str(number)}))  # type: ignore[typeddict-item]
    data: DataSpec = {**DATA, "source": str(source), "per_task": None}
    shard = written_shard(root / "site", data)
    argument = json.dumps([str(root / "site"), shard.sha256, data])
    done = subprocess.run([sys.executable, "-c", ROUND, argument], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, read, _ = json.loads(done.stdout.splitlines()[-1])
    return grown, read


def test_memory_and_reading_of_a_round_do_not_follow_the_size_of_the_shard(tmp_path: Path) -> None:
    small, large = round_cost(tmp_path / "small", 2_000), round_cost(tmp_path / "large", 60_000)
    shard_nbytes = next((tmp_path / "large" / "site" / "shard").glob("*.jsonl")).stat().st_size
    assert shard_nbytes > 25e6
    assert large[0] - small[0] < 3e6  # 8 bytes a record: 0.5 MB
    assert large[1] - small[1] < 100_000
    assert large[1] < 128 * 2_000 + 200_000


def test_an_index_of_another_file_is_refused(tmp_path: Path) -> None:
    shard = written_shard(tmp_path, DATA)
    index_path(shard.path).write_bytes(b"no index")
    with pytest.raises(DamagedShardError, match="cannot be read"):
        ShardReader(shard.path)
