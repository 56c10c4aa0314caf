"""Which code runs here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apps.base.errors import VersionMismatch
from apps.base.versions import code_version, library_versions, require_same_code

PROJECT = Path(__file__).resolve().parents[3]
LIGHT = [f"apps/{name}.py" for name in ("__init__", "base/__init__", "base/errors", "base/versions")]


def version_of(root: Path) -> str:
    code = "import sys; from apps.base.versions import code_version; sys.stdout.write(code_version())"
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout


def test_version_follows_the_source_and_not_the_place(tmp_path):
    for root in (tmp_path / "one", tmp_path / "two"):
        (root / "apps" / "base").mkdir(parents=True)
        for name in LIGHT:
            shutil.copy(PROJECT / name, root / name)
    one, two = version_of(tmp_path / "one"), version_of(tmp_path / "two")
    assert one == two
    assert re.fullmatch("[0-9a-f]{16}", one)
    assert not list((tmp_path / "one" / "apps").glob("*.txt"))
    (tmp_path / "two" / "apps" / "notes.txt").touch()
    assert version_of(tmp_path / "two") == one
    with open(tmp_path / "two" / "apps" / "base" / "errors.py", "a") as stream:
        stream.write("# changed\n")
    assert version_of(tmp_path / "two") != one


def test_other_code_is_refused_with_both_versions():
    require_same_code(code_version(), "aurora")
    with pytest.raises(VersionMismatch, match=f"site aurora: .*{code_version()}.*driver runs abc.*same commit"):
        require_same_code("abc", "aurora")


def test_library_versions():
    found = library_versions()
    assert found["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert all(found[name] != "absent" for name in ("torch", "transformers", "safetensors"))
