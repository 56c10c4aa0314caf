"""A small model and small data in the forms that the campaign expects: a folder of weights, SMolInstruct's archive."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PER_TASK = 24
SHAPE = {"width": 64, "layers": 2}


def write_materials(folder: Path, seed: int) -> None:
    """Write ``model`` and ``smolinstruct/data.zip`` below a folder."""
    from chemistry_archive import published_records, write_archive
    from nano_run import first_model, nano_campaign

    from apps.models.model import save_for_users

    save_for_users(first_model(nano_campaign(seed=seed, model={"source": "tiny", "tiny": SHAPE})), folder / "model")
    (folder / "smolinstruct").mkdir()
    write_archive(folder / "smolinstruct" / "data.zip", published_records(PER_TASK))


def put(folder: Path, target: Path) -> None:
    """Copy the materials to a place's storage."""
    shutil.copytree(folder, target)


if __name__ == "__main__":
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    write_materials(Path(sys.argv[1]), int(sys.argv[2]))
