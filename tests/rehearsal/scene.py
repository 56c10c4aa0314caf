"""A campaign under way: its driver, its journal, what its sites do, and the jobs of its schedulers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from campaigns import journal
from patience import patience

from apps.training.progress import Progress, read_progress
from rehearsal.campaign import SmallCampaign, storage_root
from rehearsal.commands import RehearsalError
from rehearsal.separation import MemoryCap
from rehearsal.world import Place

T = TypeVar("T")
KILLED = -signal.SIGKILL


@dataclass
class Scene:
    """One campaign.

    Attributes:
        campaign: its command line.
        places: all places by name; the driver's is one of them.
        cap: memory of the driver's host.
        log: file that takes what the drivers print.
        drivers: number of drivers so far.
    """

    campaign: SmallCampaign
    places: Mapping[str, Place]
    cap: MemoryCap
    log: Path
    drivers: int = 0
    process: subprocess.Popen[bytes] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        """Return the run directory, as this process sees it."""
        return self.campaign.driver.path(self.campaign.run_dir)

    def begin(self, *options: str) -> None:
        self._start(self.campaign.begin(*options))

    def resume(self) -> None:
        self._start(self.campaign.resume())

    def _start(self, command: list[str]) -> None:
        self.drivers += 1
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.cap.command(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def code(self) -> int | None:
        """Return the exit code of the driver; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def kill_driver(self) -> None:
        """Kill the driver alone, as a reboot or the kernel's memory killer would."""
        assert self.process is not None
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if any(word.endswith("fl_round.py") for word in process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                break
        self.process.wait()

    def events(self, *names: str) -> list[dict[str, Any]]:
        return journal(self.run_dir, *names)

    def progress(self, site: str) -> Progress | None:
        """Return what a site's training has reported last."""
        place = self.places[site]
        return read_progress(place.path(f"{storage_root(place.facility)}/{self.run_dir.name}/{site}"))

    def rounds_done(self) -> int:
        done = [r["result"]["version"] for r in self.events("task_done") if r["app"] == "aggregate"]
        return max(done, default=0)

    def wait_for(self, what: str, condition: Callable[[], T], limit_s: float = 240) -> T:
        """Wait for the first true value of a condition while the driver runs, and return it.

        Raises:
            RehearsalError: the driver ended, or it took too long.
        """
        end = time.monotonic() + patience(limit_s)
        while not (value := condition()):
            if self.code() is not None:
                raise RehearsalError(f"the driver ended with {self.code()} before {what}: {self.words()}")
            if time.monotonic() > end:
                raise RehearsalError(f"{what} did not happen: {self.words()}")
            time.sleep(0.2)
        return value

    def wait_for_training(self, site: str, after_round: int) -> Progress:
        """Wait until a site is at work on a later round, some steps in."""

        def at_work() -> Progress | None:
            found = self.progress(site)
            if found and found["round"] > after_round and found["phase"] == "training":
                return found if found["steps"] // 4 <= found["step"] < found["steps"] else None
            return None

        return self.wait_for(f"{site} trained a round after {after_round}", at_work)

    def live_jobs(self, site: str) -> list[str]:
        """Return the ids of a place's live jobs."""
        jobs = self.places[site].ask("jobs")
        return [job["id"] for job in jobs if job["state"] in ("PENDING", "RUNNING", "CONFIGURING")]

    def job_count(self) -> int:
        """Return how many jobs all schedulers have ever been given."""
        return sum(len(place.ask("jobs")) for place in self.places.values())

    def words(self, lines: int = 12) -> str:
        """Return the last lines that the drivers have printed."""
        return "\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def versions(self) -> dict[int, str]:
        """Return the SHA-256 of each version of the model."""
        return versions(self.run_dir)

    def close(self) -> None:
        """End a driver that still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill_driver()


def versions(run_dir: Path) -> dict[int, str]:
    """Return the SHA-256 of each version of a run's model."""
    made = [r["result"] for r in journal(run_dir, "task_done") if r["app"] == "aggregate"]
    return {r["version"]: r["artifact"]["sha256"] for r in made}
