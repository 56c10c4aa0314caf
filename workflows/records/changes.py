"""What of a campaign may change between two drivers of one run, and what was changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.base.files import write_text
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import as_plain, as_yaml, check_campaign, differences, read_campaign
from workflows.planning.overrides import apply_set, choose_sites
from workflows.planning.yaml_file import read_yaml
from workflows.records.journal import Journal
from workflows.records.run_directory import RunDirectory

MAY_CHANGE = ("retries", "strategy.quorum", "strategy.deadline_s", "evaluation.threads", "evaluation.batch_size")
FIXED_SITE_KEYS = ("tasks", "data", "model")  # of a site all may change but its share of the work
Changes = dict[str, tuple[Any, Any]]


def resumed_campaign(run: RunDirectory, source: Path | None, sets: list[str], sites: str | None) -> Campaign:
    """Return the campaign that a run is resumed with, and change nothing on disk; ``keep_campaign`` does that.

    It is the recorded campaign with the changes found in the campaign files and on the command line.

    Args:
        run: the run directory.
        source: a campaign file named with the resume, or None.
        sets, sites: overrides named with the resume.

    Raises:
        UserMistake: something has changed that a run in progress cannot take; shows the difference.
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
    """The campaign as each place has it that a person may have edited."""
    opened, kept = run.opened, run.path / "campaign.yaml"
    if kept.exists():
        yield as_plain(check_campaign(read_yaml(kept), kept))
    origin = Path(opened["source"])
    if source is None and origin.is_file() and origin.read_text() != opened["source_text"]:
        source = origin
    if source is not None:
        plain = as_plain(read_campaign(source, [*opened["sets"], *sets], sites or opened["sites"]))
        if plain["model"]["dtype"] == "auto":
            plain["model"]["dtype"] = recorded["model"]["dtype"]
        yield plain
    if sets or sites:
        raw = copy.deepcopy(recorded)
        for text in sets:
            apply_set(raw, text)
        raw["sites"] = choose_sites(raw["sites"], sites) if sites else raw["sites"]
        yield as_plain(check_campaign(raw, Path("--set, --sites")))


def accepted_changes(recorded: dict[str, Any], candidate: dict[str, Any]) -> Changes:
    """Key -> (old, new).

    Raises:
        UserMistake: a key has changed that must not.
    """
    changes = differences(recorded, candidate)
    refused = {key: pair for key, pair in changes.items() if not _may_change(key, *pair)}
    if refused:
        shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise UserMistake(
            f"the campaign has changed since this run began: {shown}",
            remedy="Undo the change or start a new run; what may change are rounds (upwards), the sites' configs, "
            + ", ".join(MAY_CHANGE),
        )
    return changes


def _may_change(key: str, old: Any, new: Any) -> bool:
    if key == "rounds":
        return new > old
    parts = key.split(".")
    if parts[0] == "sites":
        return len(parts) > 2 and parts[2] not in FIXED_SITE_KEYS
    return key in MAY_CHANGE or parts[0] == "globus"


def _with(plain: dict[str, Any], changes: Changes) -> dict[str, Any]:
    result = copy.deepcopy(plain)
    for key, (_, value) in changes.items():
        *folders, last = key.split(".")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
        if value is None and folders[:1] == ["sites"]:  # taken away; another machine does not even know the setting
            del place[last]
    return result


def current_campaign(journal: Journal) -> dict[str, Any]:
    """The campaign as the last change left it."""
    return list(journal.events("campaign_opened", "campaign_changed"))[-1]["campaign"]


def rounds_asked(journal: Journal) -> list[int]:
    """The numbers of rounds that were asked for: by the first driver, and by resumes that raised it."""
    return sorted({r["rounds"] for r in journal.events("campaign_opened", "campaign_changed")})


def schedule_rounds(asked: Sequence[int], round: int) -> int:
    """Length in rounds of the learning-rate schedule that a round belongs to.

    The rounds that were asked for first keep the schedule they were asked for with, so that what is done stays done;
    the rounds that a resume has added follow the longer schedule.
    """
    return next((total for total in asked if total >= round), asked[-1])
