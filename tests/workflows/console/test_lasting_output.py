"""The reader of a command's output ends, and its work goes on: by every script, on a pipe and on a full disk."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import PROJECT, environment

SCRIPTS = sorted(path for path in (PROJECT / "workflows").glob("*.py") if "__main__" in path.read_text())
WORK = """
import sys
from pathlib import Path
from workflows.console.command import leave, say

def main():
    from rich.console import Console
    console = Console()
    for number in range(20000):
        say("a line for the user")
        console.print("a line by rich")
    print("and to the other", file=sys.stderr)
    Path(sys.argv[1]).write_text("done")
    return 7

leave(main)
"""


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "work.py").write_text(WORK)
    own = {**environment(), "PYTHONPATH": str(PROJECT), "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=own, capture_output=True, text=True)


@pytest.mark.parametrize(
    "line",
    [
        "$PYTHON work.py end | head -1; exit ${PIPESTATUS[0]}",
        "$PYTHON work.py end 2>&1 | head -1; exit ${PIPESTATUS[0]}",
        "$PYTHON work.py end > /dev/full",
        "$PYTHON work.py end > /dev/full 2>&1",
        "$PYTHON work.py end >&-",
    ],
)
def test_the_work_is_done_and_keeps_its_exit_code(line: str, tmp_path: Path) -> None:
    ended = shell(line, tmp_path)
    assert ended.returncode == 7 and (tmp_path / "end").read_text() == "done"
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr


def test_a_terminal_without_unicode_shows_what_it_can(tmp_path: Path) -> None:
    text = WORK.replace("a line for the user", "0 \u2192 1 \u00fc")
    (tmp_path / "work.py").write_text(text, encoding="utf-8")
    own = {**environment(), "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "work.py", "end"], cwd=tmp_path, env=own, capture_output=True)
    assert ended.returncode == 7 and ended.stdout.startswith(b"0 ? 1 \xfc\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_run_so(script: Path) -> None:
    last = ast.parse(script.read_text()).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.body[-1]) == "leave(main)"
