"""Small campaigns over real schedulers on this machine, and checks of their end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaigns import command, environment, journal, nano
from patience import patience

from workflows.runtime.orphans import find_orphans

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

COMMON = {"address": "127.0.0.1", "poll_s": 1, "heartbeat_s": 3}
TASKS = ("chemical_reaction", "molecule_description", "name_conversion", "property_prediction")


def slurm_entry(cluster: SlurmCluster, storage: Path, **settings: Any) -> dict[str, Any]:
    """Return the entry of a campaign for a site on a Slurm cluster of this machine."""
    own = {"command_environment": dict(cluster.environment), "storage_root": str(storage), "walltime": "10m"}
    return {"config": "slurm", **COMMON, **own, **settings}


def pbs_entry(facility: PbsFacility, storage: Path, **settings: Any) -> dict[str, Any]:
    """Return the entry of a campaign for a site on a PBS facility of this machine."""
    own = {"command_environment": dict(facility.environment), "storage_root": str(storage), "walltime": "10m"}
    return {"config": "pbs", **COMMON, **own, **settings}


def batch_campaign(sites: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return the nano campaign over these sites, one family of tasks each."""
    with_tasks = {name: {**entry, "tasks": [TASKS[i]]} for i, (name, entry) in enumerate(sites.items())}
    data = {"per_task": 20, "tasks": list(TASKS[: len(sites)])}
    return nano(sites=with_tasks, data=data, **changes)


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start ``fl_round.py`` and return its process."""
    own = {**environment(), "CROSSFED_HISTORY": str(folder / "history.csv")}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*arguments), cwd=folder, env=own, umask=0o022, **streams)


def finish(driver: subprocess.Popen[str], limit_s: float = 240) -> str:
    """Wait for a driver that should succeed; return its output."""
    output, _ = driver.communicate(timeout=patience(limit_s))
    assert driver.returncode == 0, output
    return output


def wait_for(what: str, condition: Callable[[], Any], driver: subprocess.Popen[str], limit_s: float = 120) -> Any:
    """Wait until a condition is true in a running campaign; return its value."""
    until = time.monotonic() + patience(limit_s)
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        if driver.poll() is not None:
            raise AssertionError(f"the driver ended before {what}: {driver.communicate()[0]}")
        time.sleep(0.1)
    driver.kill()
    raise AssertionError(f"{what} did not happen in {limit_s} s: {driver.communicate()[0]}")


def events(run_dir: Path, *names: str) -> list[dict[str, Any]]:
    """Return the journal's records of these kinds, none if there is no journal yet."""
    return journal(run_dir, *names) if (run_dir / "journal.jsonl").exists() else []


def trained_once(run_dir: Path) -> bool:
    """Return True if no site has trained a round twice."""
    done = [(r["site"], r["round"]) for r in events(run_dir, "task_done") if r["app"] == "local_train"]
    return len(done) == len(set(done))


def nothing_left(run_dir: Path, *facilities: SlurmCluster) -> bool:
    """Return True if no job and no process of a campaign is left."""
    token = events(run_dir, "campaign_opened")[0]["token"]
    jobs = [job for cluster in facilities for job in cluster.jobs().values() if job.state in ("PENDING", "RUNNING")]
    return not jobs and not find_orphans(token)
