"""The run directory: held by one driver at a time, with files that explain a run to people."""

from __future__ import annotations

import platform
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.base.files import write_json, write_text
from apps.base.own_packages import ROOT
from apps.base.versions import code_version, library_versions
from workflows.console.paths import command_line
from workflows.planning.campaign import NAME, Campaign
from workflows.planning.campaign_file import as_plain, as_yaml
from workflows.records.campaign_code import campaign_code
from workflows.records.driver_lock import DriverLock, holder
from workflows.records.journal import Journal, require_unaltered

RUNS = Path("runs")


class RunDirectory:
    """``runs/NAME`` while a driver holds its lock. An existing one is only read until ``begin``."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = DriverLock(self.path)
        self.journal = Journal(self.path / "journal.jsonl")

    @property
    def artifacts(self) -> Path:
        """The folder of the driver's artifacts."""
        return self.path / "artifacts"

    @property
    def opened(self) -> dict[str, Any]:
        """The first record of the journal: token, campaign, source, code."""
        for record in self.journal.events("campaign_opened"):
            return record
        raise UserMistake(f"{self.journal.path} does not begin with a campaign", remedy="Start a new run")

    @property
    def finished_rounds(self) -> int:
        """Rounds of the campaign when it was last finished; 0 if it never was."""
        return max((r["rounds"] for r in self.journal.events("campaign_finished")), default=0)

    def begin(self) -> None:
        """Hold the run for good, and write this process into the lock file, for the message to a second driver.

        Raises:
            UserMistake: a driver on another host holds it.
        """
        self.lock.begin()

    def close(self) -> None:
        """Close the journal and release the lock."""
        self.journal.close()
        self.lock.close()


def choose_path(campaign: Campaign, name: str | None) -> tuple[Path, Path | None]:
    """Return the folder of a new run, and the newest unfinished run of that name if there is one.

    Raises:
        UserMistake: the requested name is taken or not allowed.
    """
    wanted = RUNS / (name or campaign.name)
    if name is not None and not re.fullmatch(NAME, name):
        raise UserMistake(f"--name {name[:70]!r}: use letters, digits, '.', '_' and '-', at most 60, no path")
    if not _taken(wanted):
        return wanted, None
    if name:
        state = "finished; choose another name" if is_finished(wanted) else unfinished_text(wanted)
        raise UserMistake(f"{wanted} exists and is {state}")
    taken = [wanted]
    while _taken(path := RUNS / f"{campaign.name}-{len(taken) + 1}"):
        taken.append(path)
    unfinished = [path for path in taken if not is_finished(path)]
    return path, unfinished[-1] if unfinished else None


def _taken(path: Path) -> bool:
    return (path / "journal.jsonl").exists()


def is_finished(path: Path) -> bool:
    """Return True if a run directory holds a campaign that was finished."""
    journal = path / "journal.jsonl"
    return journal.exists() and b'"event":"campaign_finished"' in journal.read_bytes()


def unfinished_text(path: Path) -> str:
    """Return the state of an unfinished run: which process runs it, or how to resume it."""
    process = holder(path)
    return f"running (process {process})" if process else f"unfinished; {resume_hint(path)}"


def resume_hint(path: Path) -> str:
    """Return the hint to resume a run, with its command."""
    return f"resume it: {command_line('fl_round.py')} --resume {path}"


def open_new(path: Path, campaign: Campaign, source: Path, sets: list[str], sites: str | None) -> RunDirectory:
    """Create a run directory; its first record has everything that a resume needs."""
    run = RunDirectory(path)
    run.begin()
    if not run.journal.records:
        run.journal.write(
            "campaign_opened",
            token=secrets.token_hex(16),
            campaign=as_plain(campaign),
            source=str(source.resolve()),
            source_text=source.read_text(encoding="utf-8"),
            sets=sets,
            sites=sites,
            code_version=code_version(),
            campaign_code=campaign_code(),
            rounds=campaign.rounds,
        )
    write_text(run.path / "campaign.yaml", as_yaml(campaign))
    write_environment(run.path)
    return run


def open_existing(path: Path) -> RunDirectory:
    """Open a run to resume it.

    Raises:
        UserMistake: there is no such run, it is in use, it has no records, was begun with other code, or altered.
    """
    if not _taken(path):
        raise UserMistake(f"{path} is no run directory: it has no journal.jsonl")
    run = RunDirectory(path)
    try:
        if not run.journal.records:
            raise UserMistake(f"{path} has an empty journal: the run never began", remedy="Delete it and start anew")
        began_with = run.opened.get("campaign_code", "of an older release")
        if began_with != campaign_code():
            raise UserMistake(
                f"{path} was begun with campaign code {began_with}, this is {campaign_code()}",
                remedy="Check out that commit again (environment.json names it) to resume it, or start a new run",
            )
        require_unaltered(run.journal.path)
    except UserMistake:
        run.close()
        raise
    return run


def write_environment(path: Path) -> None:
    """Write ``environment.json``: host, versions of code and libraries, git commit, command."""
    write_json(
        path / "environment.json",
        {
            "host": platform.node(),
            "platform": platform.platform(),
            "python": sys.version.split()[0],
            "command": sys.argv,
            "git_commit": _git_commit(),
            "code_version": code_version(),
            "campaign_code": campaign_code(),
            "packages": library_versions(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def _git_commit() -> str:
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "not a git checkout"
