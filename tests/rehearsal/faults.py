"""Faults of a rehearsal: each is done in the middle of a training, and the campaign goes on or is resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rehearsal.commands import RehearsalError
from rehearsal.scene import Scene

SILENT_S, RETRY_S = 40.0, 15.0
FROZEN_S = 300.0  # a block without its workers is replaced after three minutes
Act = Callable[[Scene, str], str]  # takes the site; returns what happened, for the table


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        text: what is done, for people.
        act: does it.
        on_batch: it is for the site whose scheduler the driver calls; else for any site.
    """

    text: str
    act: Act
    on_batch: bool = False


def kill_the_driver(scene: Scene, site: str) -> str:
    scene.kill_driver()
    scene.resume()
    return "resumed"


def cancel_the_block(scene: Scene, site: str) -> str:
    job = running_job(scene, site)
    place = scene.places[site]
    command = "qdel" if place.facility.scheduler == "pbs" else "scancel"
    place.run(f"{command} {job}")
    return f"job {job} cancelled"


def hang_the_nodes(scene: Scene, site: str) -> str:
    """Stop all processes of the block; if the campaign does not replace it, let them go on after a time."""
    job = running_job(scene, site)
    begun, before = time.monotonic(), len(scene.places[site].ask("jobs"))
    count = scene.places[site].ask("freeze", job=job)
    while time.monotonic() - begun < FROZEN_S:
        if scene.code() is not None or len(scene.places[site].ask("jobs")) > before:
            return f"{count} processes stopped, block replaced after {time.monotonic() - begun:.0f} s"
        time.sleep(1)
    scene.places[site].ask("thaw", job=job)
    return f"{count} processes stopped for {time.monotonic() - begun:.0f} s: not replaced, thawed"


def maintenance(scene: Scene, site: str) -> str:
    """Let the scheduler be silent at a resume, as on a day of maintenance."""
    scene.kill_driver()
    place = scene.places[site]
    place.ask("silence")
    begun, refused = time.monotonic(), 0
    scene.resume()
    while time.monotonic() - begun < SILENT_S:
        if scene.code() is not None:
            refused += 1
            time.sleep(RETRY_S)
            scene.resume()
        time.sleep(0.5)
    place.ask("answer")
    went = f"{refused} resumes refused" if refused else "the driver waited for it"
    return f"scheduler silent for {time.monotonic() - begun:.0f} s: {went}"


def running_job(scene: Scene, site: str) -> str:
    jobs = scene.live_jobs(site)
    if not jobs:
        raise RehearsalError(f"{site} has no job")
    return jobs[-1]


FAULTS = {
    "driver": Fault("kill -9 of the driver, resume", kill_the_driver),
    "cancel": Fault("the block is cancelled by hand", cancel_the_block),
    "hang": Fault("all processes of a block hang (SIGSTOP)", hang_the_nodes, on_batch=True),
    "maintenance": Fault("the driver is killed, the scheduler is silent at its resume", maintenance, on_batch=True),
}
