"""Compare what a round of a site costs before its first step: the whole shard tokenised, or what was drawn.

    python tests/benchmarks/shard.py [--records 200000] [--repetitions 3] [--folder FOLDER]

whole    verify the shard, parse and tokenise all of its records, plan the batches: once the cost of each rank and round
drawn    apps.training.samples: open the shard by its index, draw, read and tokenise what was drawn

Records are those of the embedded set's reactions, made as long as SMolInstruct's (about 140 tokens); a round draws 30
batches of 48. Each measurement is a process of its own with one thread, after the tokenizer is loaded. CPU seconds are
user and system time, memory is the growth of the process at its peak. The two ways of a repetition follow one another
directly, and ratios are formed within a repetition. Enrolment, which happens once, is measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
TASKS = ["forward_synthesis", "retrosynthesis"]
STEPS, BATCH = 30, 48
MODEL: Any = {"source": "smollm2-135m-instruct"}


def data_spec(source: Path) -> Any:
    prompt = "[INST] {input} [/INST]"
    spec = {"source": str(source), "tasks": TASKS, "per_task": None, "max_tokens": 512, "prompt": prompt}
    return {**spec, "loss_on": "answer"}


def write_records(folder: Path, count: int) -> None:
    """Write records of about the length of SMolInstruct's reactions."""
    from data.records import load_records

    folder.mkdir(parents=True)
    some = load_records("embedded", "train", TASKS)
    with open(folder / "train.jsonl", "w") as lines:
        for number in range(count):
            record = some[number % len(some)]
            longer = f"{record['input']} {record['raw_input']}.{record['raw_output']}"
            lines.write(json.dumps({**record, "input": longer, "sample_id": str(number)}) + "\n")


def whole(root: Path, sha256: str, tokenizer: Any, data: Any) -> int:
    from apps.models.batches import plan_batches
    from apps.models.encoding import encode
    from apps.training.shard import open_shard, read_shard

    open_shard(root, data["source"], data["tasks"], data["per_task"])
    samples = encode(read_shard(root, sha256), tokenizer, data)
    return sum(map(len, plan_batches([len(s.tokens) for s in samples], BATCH, STEPS, 1)))


def drawn(root: Path, sha256: str, tokenizer: Any, data: Any) -> int:
    from apps.models.batches import iter_batches
    from apps.training.samples import ShardSamples

    return sum(map(len, iter_batches(ShardSamples(root, sha256, tokenizer, data), BATCH, STEPS, 1)))


def measure(way: str, root: Path, sha256: str, source: Path) -> None:
    """Print the CPU seconds and the growth of one way, in a fresh process."""
    from apps.models.model import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    tokenizer(["warm up"])
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    {"whole": whole, "drawn": drawn}[way](root, sha256, tokenizer, data_spec(source))
    cpu_s = time.process_time() - began
    print(json.dumps([cpu_s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024]))


def in_process(way: str, *arguments: str) -> tuple[float, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--measure", way, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    cpu_s, nbytes = json.loads(done.stdout.splitlines()[-1])
    return cpu_s, nbytes


def spread(values: Sequence[float], form: str = "{:.3g}") -> str:
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def enrolment(root: Path, source: Path) -> str:
    """Write the shard and its index, count cut samples; print the cost and return the shard's SHA-256."""
    from apps.models.model import load_tokenizer
    from apps.training.samples import shard_cuts, written_shard

    data, began = data_spec(source), time.process_time()
    shard = written_shard(root, data)
    written = time.process_time()
    cuts = shard_cuts(shard, lambda: load_tokenizer(MODEL), data, 1)
    print(
        f"enrolment: {written - began:.1f} CPU s to write {shard.path.stat().st_size / 1e6:.0f} MB and its index, ",
        end="",
    )
    print(f"{time.process_time() - written:.1f} CPU s to count cut samples: {cuts}")
    return shard.sha256


def compare(records: int, repetitions: int, folder: Path) -> None:
    source, root = folder / "source", folder / "site"
    write_records(source, records)
    sha256 = enrolment(root, source)
    found: dict[str, list[tuple[float, float]]] = {"whole": [], "drawn": []}
    for _ in range(repetitions):
        for way, results in found.items():
            results.append(in_process(way, str(root), sha256, str(source)))
    for way, results in found.items():
        cpu, memory = [r[0] for r in results], [r[1] / 1e6 for r in results]
        print(f"{way}: CPU seconds {spread(cpu)}, memory {spread(memory)} MB")
    pairs = list(zip(found["drawn"], found["whole"], strict=True))
    ratios = [[new[k] / old[k] for new, old in pairs] for k in (0, 1)]
    print(f"drawn / whole: CPU seconds {spread(ratios[0])}, memory {spread(ratios[1])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, root, sha256, source = options.measure
        measure(way, Path(root), sha256, Path(source))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(options.records, options.repetitions, Path(folder))


if __name__ == "__main__":
    main()
