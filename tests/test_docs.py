"""The documentation is true: its commands run and print what is shown, its links, files and messages exist.

How the documents are read:

* a ``console`` block shows commands after ``$`` and their output, in which ``...`` stands for anything. Commands with
  ``--check``, ``--dry-run`` or ``--help`` are run, and the output must be what is shown, from first to last line;
* of other commands, and in ``sh`` blocks, the script and its options must exist;
* a ``yaml`` block is a part of a campaign, or a whole one if its first line names a file, which commands may then use;
* other blocks are not checked, but for the tree of files in the README.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import yaml
from campaigns import PROJECT

from workflows.planning.campaign_file import check_campaign
from workflows.planning.yaml_file import read_yaml

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/chemistry/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
TOPS = ("workflows", "apps", "site_configs", "data", "tests", "docs", ".ci")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
HARMLESS = ("--check", "--dry-run", "--help")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language, without their indentation."""
    found = BLOCK.findall(page.read_text())
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, name, text in found if name == language]


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page with the output that is shown; no output in ``sh`` blocks."""
    for text in blocks(page, "console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output
    for text in blocks(page, "sh"):
        yield from ((re.sub(r" +# .*", "", line), "") for line in text.splitlines() if line and line[0] != "#")


def script_of(command: str) -> Path | None:
    """Return the script that a command starts; None if it is not one of the project's."""
    names = [word for word in shlex.split(command) if word.endswith(".py")]
    return PROJECT / names[0] if re.match(r"\S*python ", command) and names else None


def is_run(command: str) -> bool:
    words = shlex.split(command)
    return script_of(command) is not None and any(word in words for word in HARMLESS) and "--live" not in words


RUN = [(page, command, output) for page in PAGES for command, output in commands(page) if is_run(command)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what each command of the documents prints, run as from a fresh clone without a run."""
    folder = tmp_path_factory.mktemp("clone")
    for top in TOPS:
        (folder / top).symlink_to(PROJECT / top)
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if named := re.match(r"# (\w+\.yaml)\n", text):
                (folder / named[1]).write_text(text)

    def run(command: str) -> str:
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        )
        return (done.stdout + done.stderr).replace(f"{PROJECT}/", "").replace(f"{folder}/", "")

    wanted = list(dict.fromkeys(command for _, command, _ in RUN))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(run, wanted), strict=True))


@pytest.mark.parametrize(("page", "command", "shown"), RUN, ids=[command[:60] for _, command, _ in RUN])
def test_a_command_prints_what_is_shown(page: Path, command: str, shown: str, outputs: dict[str, str]) -> None:
    del page
    assert "Traceback" not in outputs[command]
    assert pattern_of(shown or "...\n").fullmatch(outputs[command]), outputs[command]


def pattern_of(shown: str) -> re.Pattern[str]:
    """Return a pattern for an output in which ``...`` stands for anything: in a line, or for whole lines."""
    lines = [
        "(?:.*\n)*?" if line == "..." else ".*?".join(map(re.escape, line.split("..."))) + "\n"
        for line in shown.rstrip("\n").splitlines()
    ]
    return re.compile("".join(lines))


@cache
def options_of(script: Path) -> set[str]:
    """Return the options of a script, read from its ``--help``."""
    arguments = [sys.executable, script, "--help"]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))


@by_page
def test_scripts_and_options_of_all_commands_exist(page: Path) -> None:
    for command, _ in commands(page):
        script = script_of(command)
        if script and not is_run(command):
            assert script.is_file(), command
            given = {word.partition("=")[0] for word in shlex.split(command) if word.startswith("-")}
            assert given <= options_of(script), command
        elif command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), command


@by_page
def test_campaigns_that_are_shown_are_campaigns(page: Path) -> None:
    tiny = read_yaml(PROJECT / "workflows" / "campaigns" / "tiny.yaml")
    for text in blocks(page, "yaml"):
        shown = yaml.safe_load(text)
        check_campaign(shown if "name" in shown else tiny | shown, page)


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the names under which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_page
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    for text in CODE.findall(BLOCK.sub("", page.read_text())):
        for word in text.split():
            path = word.strip(",;:.")
            if re.fullmatch(rf"({'|'.join(map(re.escape, TOPS))})/[\w./*-]*", path):
                assert list(PROJECT.glob(path.rstrip("/"))) or list(page.parent.glob(path)), word
            elif re.fullmatch(r"(apps|workflows|site_configs)(\.\w+)+", path):
                parts = path.split(".")
                assert any((PROJECT / "/".join(parts[:n])).with_suffix(".py").is_file() for n in (-1, len(parts))), word


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = next(text for text in blocks(PAGES[0], "text") if text.startswith("workflows/"))
    folder = PROJECT
    for line in tree.splitlines():
        names = [name for name in re.split(r" {2,}", line.strip()) if re.fullmatch(r"[\w.]+/?", name)]
        assert names, line
        for name in names:
            assert ((folder if line.startswith("  ") else PROJECT) / name).exists(), line
        if not line.startswith("  "):
            folder = PROJECT / names[0]
    shown = set(re.findall(r"(\w+)/", tree))
    rooms = {path.parent.name for top in TOPS[:3] for path in (PROJECT / top).glob("*/__init__.py")}
    assert rooms <= shown


@cache
def messages() -> str:
    """Return all texts of the source, with a mark where a value is filled in."""
    texts = []
    for path in (path for top in TOPS[:4] for path in (PROJECT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def is_in_source(shown: str) -> bool:
    """Return True if a message, in which examples stand for what is filled in, has a fixed part of the source's."""
    example = r"\.\.\.|[:;] |\S*(?:polaris|frontier|alpha|gpu|login|hsn0|offline|'data'|/|\d)\S*|artifact's"
    parts = [part.strip(" !,()'") for part in re.split(example, shown)]
    return any(len(part) >= 9 and part in messages() for part in parts)


def test_the_messages_in_the_table_of_troubles_are_those_of_the_source() -> None:
    rows = re.findall(r"^\| `(.+?)`", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert [row for row in rows if not is_in_source(row)] == []


@by_page
def test_the_results_of_live_checks_are_those_of_the_source(page: Path) -> None:
    rows = re.findall(r"^ *(?:ok|PROBLEM) +\w+: (.*)$", page.read_text(), re.MULTILINE)
    assert [row for row in rows if not is_in_source(row)] == []


def test_every_statement_about_security_names_tests_that_exist() -> None:
    page = (PROJECT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 2]
    shown = [line.rsplit("| ", 1)[1] for line in rows]
    claims = [cell for cell in shown if "test_" in cell]
    assert len(claims) > 20
    code = "\n".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE))
    named = {name for cell in claims for name in re.findall(r"`(test_\w+)`", cell)}
    assert named <= defined, sorted(named - defined)
    threats = page.split("## A hostile or faulty site")[1].split("## What you can do")[0]
    statements = [line for line in threats.splitlines() if line.startswith("| ") and "---" not in line]
    without = [line for line in statements if "`test_" not in line and "shown by" not in line]
    assert not without
