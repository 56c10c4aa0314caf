"""The run directory: opened by one driver at a time, and explaining itself to people."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from apps.base.errors import UserMistake
from apps.base.files import write_json, write_text
from apps.base.versions import code_version, library_versions
from workflows.console.paths import command_line
from workflows.planning.campaign import NAME, Campaign
from workflows.planning.campaign_file import as_plain, as_yaml
from workflows.records.journal import Journal

RUNS = Path("runs")


class RunDirectory:
    """``runs/NAME`` while a driver holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = _hold(self.path)
        self.journal = Journal(self.path / "journal.jsonl")

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def opened(self) -> dict[str, Any]:
        """The first record: token, campaign, where it came from."""
        for record in self.journal.events("campaign_opened"):
            return record
        raise UserMistake(f"{self.journal.path} does not begin with a campaign", remedy="Start a new run")

    @property
    def finished_rounds(self) -> int:
        """Rounds of the campaign as it was last finished; 0 if it never was."""
        return max((r["rounds"] for r in self.journal.events("campaign_finished")), default=0)

    def close(self) -> None:
        self.journal.close()
        self.lock.close()


def _hold(path: Path) -> IO[str]:
    """Take the run directory for this process; the kernel gives it back when the process ends, however it ends."""
    lock = open(path / "driver.lock", "a+")  # noqa: SIM115 - held as long as the driver lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise UserMistake(
            f"{path} is in use by another driver (process {holder})", remedy="Wait for it or stop it"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock


def choose_path(campaign: Campaign, name: str | None) -> tuple[Path, Path | None]:
    """Where a new run goes, and an unfinished run of that name if there is one.

    Raises:
        UserMistake: the name was asked for and is taken.
    """
    wanted = RUNS / (name or campaign.name)
    if name is not None and not re.fullmatch(NAME, name):
        raise UserMistake(f"--name {name[:70]!r}: use letters, digits, '.', '_' and '-', at most 60, no path")
    if not _taken(wanted):
        return wanted, None
    if name:
        state = "finished; choose another name" if is_finished(wanted) else f"unfinished; {resume_hint(wanted)}"
        raise UserMistake(f"{wanted} exists and is {state}")
    taken = [wanted]
    while _taken(path := RUNS / f"{campaign.name}-{len(taken) + 1}"):
        taken.append(path)
    unfinished = [path for path in taken if not is_finished(path)]
    return path, unfinished[-1] if unfinished else None


def _taken(path: Path) -> bool:
    return (path / "journal.jsonl").exists()


def is_finished(path: Path) -> bool:
    journal = path / "journal.jsonl"
    return journal.exists() and b'"event":"campaign_finished"' in journal.read_bytes()


def resume_hint(path: Path) -> str:
    return f"resume it: {command_line('fl_round.py')} --resume {path}"


def open_new(path: Path, campaign: Campaign, source: Path, sets: list[str], sites: str | None) -> RunDirectory:
    """Begin a run: its first record holds all that a resume needs."""
    run = RunDirectory(path)
    if not run.journal.records:
        run.journal.write(
            "campaign_opened",
            token=secrets.token_hex(16),
            campaign=as_plain(campaign),
            source=str(source.resolve()),
            source_text=source.read_text(),
            sets=sets,
            sites=sites,
            code_version=code_version(),
            rounds=campaign.rounds,
        )
    write_text(run.path / "campaign.yaml", as_yaml(campaign))
    write_environment(run.path)
    return run


def open_existing(path: Path) -> RunDirectory:
    """Take up a run again.

    Raises:
        UserMistake: no such run, in use, never begun, or begun with other code.
    """
    if not _taken(path):
        raise UserMistake(f"{path} is no run directory: it has no journal.jsonl")
    run = RunDirectory(path)
    try:
        if not run.journal.records:
            raise UserMistake(f"{path} was never begun: its journal is empty", remedy="Delete it and start anew")
        if run.opened["code_version"] != code_version():
            raise UserMistake(
                f"{path} was begun with crossfed code {run.opened['code_version']}, this is {code_version()}",
                remedy="Check out that commit again (environment.json names it) to go on with it",
            )
    except UserMistake:
        run.close()
        raise
    return run


def write_environment(path: Path) -> None:
    """Record what this run depends on."""
    write_json(
        path / "environment.json",
        {
            "host": platform.node(),
            "platform": platform.platform(),
            "python": sys.version.split()[0],
            "command": sys.argv,
            "git_commit": _git_commit(),
            "code_version": code_version(),
            "packages": library_versions(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def _git_commit() -> str:
    folder = Path(__file__).resolve().parent
    asked = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "not a git checkout"
