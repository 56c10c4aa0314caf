"""The course of a rehearsal: an undisturbed campaign, the same with faults, and the comparison of their bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rehearsal.campaign import local_values, records_file
from rehearsal.commands import RehearsalError
from rehearsal.faults import FAULTS
from rehearsal.scene import Scene
from rehearsal.separation import NO_CAP, MemoryCap, memory_cap
from rehearsal.stage import Size, Stage, stage

WHERE = {"local": "as processes of one host, with as many ranks", "places": "at the same places"}
RESUMES = 5  # of a driver that ends by itself
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was done, where and when, what followed."""

    what: str
    where: str
    result: str
    drivers: int
    jobs: int
    seconds: float


def rehearse(
    root: Path,
    sites: Sequence[str],
    faults: Sequence[str],
    size: Size,
    agent: Path | None,
    memory_gb: float,
    more: Sequence[str],
    say: Say,
) -> bool:
    """Rehearse a campaign and print the table; return True if all versions of its model are alike.

    Args:
        root: folder of all files.
        sites: the driver's first.
        faults: names, one a round.
        size: of the campaign.
        agent: environment of the Globus Compute agent.
        memory_gb: cap of the driver's host.
        more: ``KEY=VALUE`` of the campaign.
        say: takes lines for people.
    """
    began, cap = time.monotonic(), memory_cap(int(memory_gb * 1e9))
    try:
        with stage(root, sites, size, agent, say) as made:
            for text in more:
                key, _, value = text.partition("=")
                made.campaign.sets[key] = value
            say(f"driver on {made.campaign.driver.facility.login}, no GPU, memory {cap.describe()}")
            kinds = ("local",) if size.short else ("local", "places")
            reference = references(root, made, sites, size, kinds, cap, say)
            scene = Scene(made.campaign, made.places, cap, root / "drivers.log")
            try:
                rows = disturbed(scene, sites, faults, say)
            finally:
                scene.close()
            return conclude(scene, rows, reference, cap, time.monotonic() - began, say)
    finally:
        cap.remove()


def references(
    root: Path, made: Stage, sites: Sequence[str], size: Size, kinds: Sequence[str], cap: MemoryCap, say: Say
) -> dict[str, dict[int, str]]:
    """Run the campaign without faults; return the hashes of its versions by the kind of run.

    ``local`` runs it as processes of one host with as many ranks, ``places`` at the same facilities.
    """
    driver, found = made.campaign.driver, {}
    for kind in kinds:
        name = "undisturbed" if kind == "places" else kind
        campaign = replace(made.campaign, name=name, sets=dict(made.campaign.sets))
        if kind == "local":
            campaign.sets = size.of_everything(driver.facility, len(sites))
            campaign.sets |= local_values(sites, records_file(driver.facility))
        found[kind] = undisturbed(
            Scene(campaign, made.places, NO_CAP if kind == "local" else cap, root / f"{name}.log"), sites, say
        )
    return found


def undisturbed(scene: Scene, sites: Sequence[str], say: Say) -> dict[int, str]:
    """Run a campaign to its end; return the hashes of its versions."""
    began, name = time.monotonic(), scene.campaign.name
    say(f"{name} campaign without faults ...")
    scene.begin("--sites", ",".join(sites))
    try:
        finish(scene, resumes=0, say=say)
    finally:
        scene.close()
    say(f"  {len(scene.versions())} versions in {time.monotonic() - began:.0f} s")
    return scene.versions()


def disturbed(scene: Scene, sites: Sequence[str], faults: Sequence[str], say: Say) -> list[Row]:
    """Run the campaign through its faults, one a round at one site after the other, to its end."""
    scene.begin("--sites", ",".join(sites))
    rows = []
    for i, name in enumerate(faults):
        site = sites[0] if FAULTS[name].on_batch else sites[i % len(sites)]
        rows.append(strike(scene, name, site, say))
    began, drivers, jobs = time.monotonic(), scene.drivers, scene.job_count()
    finish(scene, RESUMES, say)
    rows.append(
        Row("to the end", "", "done", scene.drivers - drivers, scene.job_count() - jobs, time.monotonic() - began)
    )
    return rows


def strike(scene: Scene, name: str, site: str, say: Say) -> Row:
    """Wait for a training of the next round at a site, do the fault, and wait until the round is done."""
    fault, done = FAULTS[name], scene.rounds_done()
    found = scene.wait_for_training(site, done)
    where = f"{site}, round {found['round']}, step {found['step']} of {found['steps']}"
    say(f"{name} at {where}")
    began, drivers, jobs = time.monotonic(), scene.drivers, scene.job_count()
    result = fault.act(scene, site)
    say(f"  {result}")
    wait_for_round(scene, done + 1, say)
    took = time.monotonic() - began
    say(f"  round {done + 1} done {took:.0f} s after the fault")
    return Row(fault.text, where, result, scene.drivers - drivers, scene.job_count() - jobs, took)


def wait_for_round(scene: Scene, wanted: int, say: Say) -> None:
    """Wait until a round is done; a driver that ends by itself is resumed."""
    for _ in range(RESUMES):
        try:
            scene.wait_for(f"round {wanted} was done", lambda: scene.rounds_done() >= wanted, limit_s=400)
            return
        except RehearsalError:
            if scene.code() in (None, 0, 2):
                raise
            say(f"  the driver has ended with {scene.code()}; resumed")
            scene.resume()
    raise RehearsalError(f"the driver ended {RESUMES} times: {scene.words()}")


def finish(scene: Scene, resumes: int, say: Say) -> None:
    """Wait for the end of the campaign; a driver that ends by itself is resumed so many times at most."""
    while True:
        while scene.code() is None:
            time.sleep(0.3)
        if scene.code() == 0:
            return
        if not resumes:
            raise RehearsalError(f"the driver ended with {scene.code()}: {scene.words()}")
        resumes -= 1
        say(f"  the driver has ended with {scene.code()}; resumed")
        scene.resume()


def conclude(
    scene: Scene, rows: Sequence[Row], reference: dict[str, dict[int, str]], cap: MemoryCap, seconds: float, say: Say
) -> bool:
    """Print the table; return True if the campaign has ended with the bits of the undisturbed one and left nothing."""
    found = scene.versions()
    left = {site: jobs for site in scene.places if (jobs := scene.live_jobs(site))}
    own = left.pop(scene.campaign.driver.facility.name, [])
    say("")
    for line in table(rows):
        say(line)
    say("")
    for kind, versions in reference.items():
        alike = sum(found.get(version) == sha256 for version, sha256 in versions.items())
        say(f"{alike} of {len(versions)} versions have the bits of the undisturbed run ({WHERE[kind]})")
    say(f"final model: SHA-256 {found[max(found)]}")
    say(f"jobs left in the driver's queue: {', '.join(own) or 'none'}")
    if left:
        say(f"blocks that endpoints keep for the next campaign until they are idle for too long: {', '.join(left)}")
    used = cap.used_bytes()
    if used:
        say(f"memory of the driver's host: at most {used / 1e9:.1f} GB of {cap.nbytes / 1e9:.1f} GB")
    say(f"{scene.drivers} drivers, {seconds:.0f} s in all")
    return all(versions == found for versions in reference.values()) and not own


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as text in columns."""
    cells = [("what was done", "where", "what followed", "new drivers", "new jobs", "seconds")]
    cells += [(r.what, r.where, r.result, str(r.drivers), str(r.jobs), f"{r.seconds:.0f}") for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
