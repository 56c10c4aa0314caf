"""Tables of the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.console.units import bytes_text, seconds_text
from workflows.records.event_log import moved_nbytes, trainings
from workflows.records.failed_blocks import failure_text
from workflows.records.late_updates import late_updates
from workflows.records.scores import GLOBAL
from workflows.records.timeline import STAGING_IN, STAGING_OUT, TRAINING, WAITING, idle_share, round_lengths
from workflows.reporting.loss_captions import NONE, loss_text, samples_text, unit_text, within
from workflows.reporting.run_record import RunRecord

if TYPE_CHECKING:
    from pandas import Series


MOST_ROWS, FEW_ROWS = 24, 12  # of a longer table than the first only as many as the second are shown at once
MOST_SITES = 8  # with a column each


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading, with a note on how to read them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    look: str = ""  # "text": all columns are text, aligned left; "remarks": only the last one is; else numbers
    spaced: bool = False  # of a long table, rows at equal distances are shown instead of the first ones

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows that are shown at once: all of a short table."""
        count = len(self.rows)
        if count <= MOST_ROWS:
            return self.rows
        if not self.spaced:
            return self.rows[:FEW_ROWS]
        picks = sorted({round(step * (count - 1) / (FEW_ROWS - 1)) for step in range(FEW_ROWS)})
        return [self.rows[index] for index in picks]


def round_table(run: RunRecord) -> Table:
    """Return the table of rounds: one row per round that was scored or begun."""
    lengths, means = round_lengths(run.timeline), run.mean_losses
    used = {e.get("version"): _used_text(e) for e in run.journal.named("aggregated")}
    late = Counter(update.round for update in late_updates(run.journal))
    tokens: Counter[int] = Counter()
    nbytes = moved_nbytes(run.journal)
    for task in trainings(run.tasks):
        tokens[task.round] += int(task.result.get("tokens") or 0)
    rows = []
    for number in sorted({*map(int, means.index), *lengths}):
        losses = means.loc[number].dropna() if number in means.index else {}
        sites = {site: losses[site] for site in run.sites if site in losses}
        best = min(sites, key=sites.__getitem__, default=None)
        cells = [str(number), within(losses.get(GLOBAL), _error(run, number))]
        cells += [f"{loss_text(sites[best])} {best}" if best else NONE]
        cells += [used.get(number, NONE) + (f", {late[number]} too late" if late[number] else "")]
        cells += [f"{tokens[number]:,}"]
        cells += [bytes_text(nbytes[number, out]) for out in (True, False)]
        rows.append([*cells, seconds_text(lengths[number]) if number in lengths else NONE])
    columns = (run.period, "global loss", "best site's model", "updates used", "tokens", "bytes out", "bytes in")
    note = f"Losses are unweighted means over the tasks, {unit_text(run)}; {run.period} 0 is untrained."
    if run.period == "version":
        note += " Tokens, bytes and length are those since the version before."
        note += " Transfers after the last version of a finished campaign are in no row."
    if late:
        note += " Too late: an update that arrived after its round had ended; only its tokens and bytes are in the row."
    return Table(f"{run.period.capitalize()}s", (*columns, "length"), rows, note, spaced=True)


def _error(run: RunRecord, number: int) -> float | None:
    scored = GLOBAL in run.models and number in run.mean_errors.index
    return float(run.mean_errors.loc[number, GLOBAL]) if scored else None


def _used_text(event: Mapping[str, Any]) -> str:
    """Return how many updates are in a model, and how many of them for the first time."""
    updates = event.get("updates")
    if updates is None:
        return str(len(event.get("weights") or {}))
    new = sum(bool(update["new"]) for update in updates)
    return str(len(updates)) if new == len(updates) else f"{len(updates)}, {new} new"


def update_table(run: RunRecord) -> Table | None:
    """Return the table of updates of a strategy without rounds, in the order of their models; else None."""
    if run.period == "round":
        return None
    rows = [
        [
            str(event["version"]),
            update["site"],
            str(update["order"]),
            str(update["staleness"]),
            f"{update['weight']:.3f}",
            "" if update["new"] else "again",
        ]
        for event in run.journal.named("aggregated")
        for update in event.get("updates") or ()
    ]
    note = "Staleness: versions made between the model that the site started from and the one with its update."
    columns = ("version", "site", "request", "staleness", "weight", "")
    return Table("Updates", columns, rows, note, "remarks")


def task_table(run: RunRecord) -> Table:
    """Return the table of final losses by task; the owner is the site whose data hold the task."""
    final, errors = run.final_losses, run.final_errors
    sites = [model for model in run.models if model != GLOBAL]
    rows = []
    for task, losses in final.iterrows():
        name = str(task)
        cells = [name, ", ".join(run.owners[name][:MOST_SITES]) or NONE]
        cells += [f"{run.samples[name]:,}" if name in run.samples else NONE]
        cells += [within(losses[GLOBAL], errors.loc[task, GLOBAL])] if GLOBAL in final else []
        rows.append(
            cells + (_site_cells(losses, sites) if len(sites) > MOST_SITES else [loss_text(losses[s]) for s in sites])
        )
    columns = ["task", "owner", "samples", *([GLOBAL] if GLOBAL in final else [])]
    columns += ["lowest site", "median of the sites", "highest site"] if len(sites) > MOST_SITES else sites
    note = f"The last score of each model, {unit_text(run)}; of a site the global model after the site's own steps. "
    return Table("Final loss by task", columns, rows, note + samples_text(run))


def _site_cells(losses: Series, sites: Sequence[str]) -> list[str]:
    """Return the lowest loss of the sites, their median, and the highest."""
    found = losses[list(sites)].dropna()
    if not len(found):
        return [NONE] * 3
    low, high = found.idxmin(), found.idxmax()
    return [f"{loss_text(found[low])} {low}", loss_text(float(found.median())), f"{loss_text(found[high])} {high}"]


def site_table(run: RunRecord) -> Table:
    """Return the table of sites: data, work and times of each."""
    timeline, rows = run.timeline, []
    trained_at: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for task in trainings(run.tasks):
        trained_at[task.site].append(task.result)
    for site in run.sites:
        entry, trained = run.campaign["sites"][site] or {}, trained_at[site]
        counted = ("samples", "tokens", "steps_done")
        sums = [sum(int(result.get(key) or 0) for result in trained) for key in counted]
        spent = [timeline.seconds(site, p) for p in (TRAINING, WAITING)]
        spent.append(timeline.seconds(site, STAGING_OUT, STAGING_IN))
        held = sum(site in owners for owners in run.owners.values())
        cells = [site, str(entry.get("config") or site), str(held), str(len(trained))]
        cells += [f"{value:,}" for value in sums] + [f"{seconds:,.0f}" for seconds in spent]
        rows.append([*cells, f"{idle_share(timeline, site):.0%}"])
    waiting = "queue [s]" if timeline.queued else "waiting [s]"
    trainings_name = "rounds" if run.period == "round" else "requests"
    columns = ("site", "config", "tasks", trainings_name, "samples", "tokens", "steps", "training [s]", waiting)
    note = "Idle: share of the time with a driver in which the site neither transferred, waited nor trained."
    return Table("Sites", (*columns, "staging [s]", "idle"), rows, note)


def problem_table(run: RunRecord) -> Table | None:
    """Return the table of failures and of refused or late updates, in the order of time; None if there were none."""
    names = {"task_failed": "task failed", "update_refused": "update refused", "block_failed": "block failed"}
    names |= {"update_clipped": "update scaled down", "update_put_aside": "update put aside"}
    names["update_admitted"] = "update let in"
    opened = run.journal.events[0]["time"] if run.journal.events else 0.0
    timed: list[tuple[float, list[str]]] = []
    for event in run.journal.events:
        if event["event"] in names:
            parts = [str(event[key]) for key in ("app", "error", "message", "reason") if event.get(key)]
            reason = failure_text(event) if event["event"] == "block_failed" else ": ".join(parts)
            when = seconds_text(event["time"] - opened)
            cells = [when, str(event.get("round", NONE)), str(event.get("site", NONE)), names[event["event"]]]
            timed.append((event["time"], [*cells, reason]))
    for late in late_updates(run.journal):
        when = seconds_text(late.time - opened)
        timed.append((late.time, [when, str(late.round), late.site, "update too late", late.reason]))
    rows = [row for _, row in sorted(timed, key=lambda pair: pair[0])]
    columns = ("after", "round" if run.period == "round" else "request", "site", "problem", "reason")
    return (
        Table("Updates refused, put aside, scaled down or late, and failures", columns, rows, look="text")
        if rows
        else None
    )
