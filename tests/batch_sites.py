"""Small campaigns over real schedulers on this machine, and what one asks of them afterwards."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaigns import command, environment, journal, nano

from workflows.runtime.orphans import find_orphans

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

COMMON = {"address": "127.0.0.1", "poll_s": 1, "heartbeat_s": 3}
TASKS = ("chemical_reaction", "molecule_description", "name_conversion", "property_prediction")


def slurm_entry(cluster: SlurmCluster, storage: Path, **settings: Any) -> dict[str, Any]:
    """A site of a campaign on a Slurm cluster of this machine."""
    own = {"command_environment": dict(cluster.environment), "storage_root": str(storage), "walltime": "10m"}
    return {"config": "slurm", **COMMON, **own, **settings}


def pbs_entry(facility: PbsFacility, storage: Path, **settings: Any) -> dict[str, Any]:
    """The same on a PBS facility."""
    own = {"command_environment": dict(facility.environment), "storage_root": str(storage), "walltime": "10m"}
    return {"config": "pbs", **COMMON, **own, **settings}


def batch_campaign(sites: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The nano campaign over these sites, a family of tasks each."""
    dealt = {name: {**entry, "tasks": [TASKS[i]]} for i, (name, entry) in enumerate(sites.items())}
    data = {"per_task": 20, "tasks": list(TASKS[: len(sites)])}
    return nano(sites=dealt, data=data, **changes)


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The main job, going on while the test does something to it."""
    own = {**environment(), "CROSSFED_HISTORY": str(folder / "history.csv")}
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(driver: subprocess.Popen[str], limit_s: float = 240) -> str:
    """Wait for a driver that should succeed; its words."""
    output, _ = driver.communicate(timeout=limit_s)
    assert driver.returncode == 0, output
    return output


def wait_for(what: str, happened: Callable[[], Any], driver: subprocess.Popen[str], limit_s: float = 120) -> Any:
    """Wait until something has happened in a running campaign; what ``happened`` answered."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        answer = happened()
        if answer:
            return answer
        if driver.poll() is not None:
            raise AssertionError(f"the driver ended before {what}: {driver.communicate()[0]}")
        time.sleep(0.1)
    driver.kill()
    raise AssertionError(f"{what} did not happen in {limit_s} s: {driver.communicate()[0]}")


def events(run_dir: Path, *names: str) -> list[dict[str, Any]]:
    """The journal's records of these kinds, none where there is no journal yet."""
    return journal(run_dir, *names) if (run_dir / "journal.jsonl").exists() else []


def trained_once(run_dir: Path) -> bool:
    """Whether no site has trained a round twice."""
    done = [(r["site"], r["round"]) for r in events(run_dir, "task_done") if r["app"] == "local_train"]
    return len(done) == len(set(done))


def nothing_left(run_dir: Path, *facilities: SlurmCluster) -> bool:
    """Whether no job and no process of a campaign is there any more."""
    token = events(run_dir, "campaign_opened")[0]["token"]
    jobs = [job for cluster in facilities for job in cluster.jobs().values() if job.state in ("PENDING", "RUNNING")]
    return not jobs and not find_orphans(token)
