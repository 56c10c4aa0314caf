"""Changes of a campaign at a resume: which keys may change, and which have changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.base.files import write_text
from workflows.planning.absolute_paths import with_absolute_paths
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import as_plain, as_yaml, check_campaign, differences, read_campaign
from workflows.planning.overrides import apply_set, choose_sites
from workflows.planning.yaml_file import read_yaml
from workflows.records.journal import Journal
from workflows.records.run_directory import RunDirectory

MAY_CHANGE = (
    *("retries", "strategy.quorum", "strategy.deadline_s", "server.site"),
    *("evaluation.site", "evaluation.device", "evaluation.threads", "evaluation.batch_size"),
    *("checks.refuse_beyond", "checks.max_loss_increase"),
)
PLACES = ("server.site", "evaluation.site")  # where the server's work is done changes no result
FIXED_SITE_KEYS = ("tasks", "data", "model")  # the site's share of the work; its other keys may change
Changes = dict[str, tuple[Any, Any]]


def resumed_campaign(run: RunDirectory, source: Path | None, sets: list[str], sites: str | None) -> Campaign:
    """Return the campaign that a run is resumed with, and change nothing on disk; ``keep_campaign`` does that.

    It is the recorded campaign with the changes found in the campaign files and on the command line.

    Args:
        run: the run directory.
        source: campaign file given with the resume, or None.
        sets: ``--set`` overrides given with the resume.
        sites: ``--sites`` given with the resume, or None.

    Raises:
        UserMistake: a key has changed that may not change in a run; the message shows the difference.
    """
    recorded = current_campaign(run.journal)
    changes: Changes = {}
    for candidate in _candidates(run, recorded, source, sets, sites):
        changes |= accepted_changes(recorded, candidate)
    return check_campaign(_with(recorded, changes), run.path / "campaign.yaml")


def keep_campaign(run: RunDirectory, campaign: Campaign) -> None:
    """Record in the run directory the campaign that a run is resumed with."""
    changes = differences(current_campaign(run.journal), as_plain(campaign))
    if changes:
        run.journal.write("campaign_changed", campaign=as_plain(campaign), rounds=campaign.rounds, changes=changes)
    write_text(run.path / "campaign.yaml", as_yaml(campaign))


def _candidates(
    run: RunDirectory, recorded: dict[str, Any], source: Path | None, sets: list[str], sites: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the campaign from each place that a user may have edited: the run's file, the source file, options."""
    opened, kept = run.opened, run.path / "campaign.yaml"
    if kept.exists():
        yield as_plain(with_absolute_paths(check_campaign(read_yaml(kept), kept)))
    origin = Path(opened["source"])
    if source is None and origin.is_file() and origin.read_text(encoding="utf-8") != opened["source_text"]:
        source = origin
    if source is not None:
        plain = as_plain(read_campaign(source, [*opened["sets"], *sets], sites or opened["sites"]))
        for section, key in (("model", "dtype"), ("training", "precision")):
            if plain[section][key] == "auto":
                plain[section][key] = recorded[section][key]
        yield plain
    if sets or sites:
        raw = copy.deepcopy(recorded)
        for text in sets:
            apply_set(raw, text)
        raw["sites"] = choose_sites(raw["sites"], sites) if sites else raw["sites"]
        yield as_plain(with_absolute_paths(check_campaign(raw, Path("--set, --sites"))))


def accepted_changes(recorded: dict[str, Any], candidate: dict[str, Any]) -> Changes:
    """Return the changed keys, each with its old and new value.

    Raises:
        UserMistake: a key has changed that may not change.
    """
    left_out = recorded["sites"].keys() - candidate["sites"].keys()
    if left_out:
        raise UserMistake(
            f"a run keeps its sites, {', '.join(sorted(left_out))} would be missing: its rounds are replayed with them",
            remedy="A site that cannot work now is waited for; --set strategy.quorum=N lets rounds close without it",
        )
    changes = differences(recorded, candidate)
    refused = {key: pair for key, pair in changes.items() if not _may_change(key, *pair)}
    if refused:
        shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise UserMistake(
            f"the campaign has changed since this run began: {shown}",
            remedy="Undo the change or start a new run; these may change: rounds (upwards), the sites' configs, "
            + ", ".join(MAY_CHANGE),
        )
    return changes


def _may_change(key: str, old: Any, new: Any) -> bool:
    if key == "rounds":
        return new > old
    parts = key.split(".")
    if parts[0] == "sites":
        return len(parts) > 2 and parts[2] not in FIXED_SITE_KEYS
    return key in MAY_CHANGE or parts[0] == "globus" or key.startswith(tuple(f"{place}." for place in PLACES))


def _with(plain: dict[str, Any], changes: Changes) -> dict[str, Any]:
    result = copy.deepcopy(plain)
    for key, (_, value) in changes.items():
        *folders, last = key.split(".")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
        # what was removed is no key any more: another machine may not have this setting at all
        if value is None and (folders[:1] == ["sites"] or ".".join(folders) in PLACES):
            del place[last]
    return result


def current_campaign(journal: Journal) -> dict[str, Any]:
    """Return the campaign after its last recorded change."""
    return list(journal.events("campaign_opened", "campaign_changed"))[-1]["campaign"]


def rounds_asked(journal: Journal) -> list[int]:
    """Return the numbers of rounds requested so far, ascending: at the start and by resumes that raised it."""
    return sorted({r["rounds"] for r in journal.events("campaign_opened", "campaign_changed")})


def schedule_rounds(asked: Sequence[int], round: int) -> int:
    """Return the length in rounds of the learning-rate schedule that a round belongs to.

    Rounds keep the schedule they were requested with, so that finished rounds stay valid after a resume that adds
    rounds; the added rounds follow the longer schedule.
    """
    return next((total for total in asked if total >= round), asked[-1])
