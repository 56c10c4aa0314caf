"""Turn a run directory into one self-contained page with pictures: `python workflows/report.py runs/NAME`."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import CrossfedError, UserMistake
from apps.files import write_text
from workflows.figures import (
    GLOBAL,
    bytes_text,
    cost_figure,
    heatmap_figure,
    loss_figure,
    save,
    seconds_text,
    task_figure,
    timeline_figure,
    times_text,
)
from workflows.timeline import (
    STAGING_IN,
    STAGING_OUT,
    TRAINING,
    WAITING,
    EventLog,
    Timeline,
    build_timeline,
    full_model_nbytes,
    idle_share,
    moves,
    phase_seconds,
    read_events,
    round_lengths,
    task_runs,
    trainings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

METRICS_COLUMNS = ("round", "model", "task", "loss")
NONE = "–"


@dataclass(frozen=True)
class Run:
    """What a run directory holds, as read; `losses` has one row per round and columns (model, task).

    `notes` say in words what could not be read as it should.
    """

    directory: Path
    campaign: Mapping[str, Any]
    campaign_text: str
    environment: Mapping[str, Any]
    losses: DataFrame
    journal: EventLog
    notes: tuple[str, ...] = ()

    @cached_property
    def sites(self) -> tuple[str, ...]:
        return tuple(map(str, self.campaign["sites"]))

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Every scored task with the sites that train on it, in the order of the sites."""
        scored = dict.fromkeys(task for _, task in self.losses.columns)
        held = _held_tasks(self.campaign, list(scored))
        ordered = [task for tasks in held.values() for task in tasks if task in scored]
        return {task: [s for s, tasks in held.items() if task in tasks] for task in [*ordered, *scored]}

    @cached_property
    def models(self) -> list[str]:
        scored = {model for model, _ in self.losses.columns}
        return [model for model in (GLOBAL, *self.sites) if model in scored]

    @cached_property
    def mean_losses(self) -> DataFrame:
        """Unweighted mean over the tasks by round and model; missing where a single task is missing."""
        import pandas

        tasks = list(self.owners)
        by_model = {model: self.losses[model].reindex(columns=tasks) for model in self.models}
        means = {model: table.mean(axis=1, skipna=False) for model, table in by_model.items()}
        return pandas.DataFrame(means, index=self.losses.index)

    @cached_property
    def final_losses(self) -> DataFrame:
        """The last loss of each model on each task."""
        import pandas

        last = {model: _last_scored(self.losses[model]) for model in self.models}
        return pandas.DataFrame(last, columns=self.models).reindex(list(self.owners))

    @cached_property
    def timeline(self) -> Timeline:
        return build_timeline(self.journal, self.sites)


def _held_tasks(campaign: Mapping[str, Any], scored: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Site -> tasks, dealt as the campaign deals them; where that fails, those it names literally."""
    from data.partition import deal_tasks

    named = {str(site): (entry or {}).get("tasks") for site, entry in campaign["sites"].items()}
    try:
        return deal_tasks(named, scored)
    except ValueError:
        return {site: tasks or [] for site, tasks in named.items()}


def _last_scored(losses: DataFrame) -> Any:
    scored = losses.dropna(how="all")
    return scored.iloc[-1] if len(scored) else losses.iloc[-1]


def load_run(directory: Path) -> Run:
    """Read a run directory, finished or not; raises UserMistake when it is not one or is damaged."""
    if not directory.is_dir():
        raise _unreadable(directory, "there is no such run directory")
    campaign, text = _load_campaign(directory / "campaign.yaml")
    try:
        journal = read_events(directory / "journal.jsonl")
    except (OSError, ValueError) as error:
        raise _unreadable(directory / "journal.jsonl", f"is not a journal: {error}") from error
    losses, notes = _load_losses(directory / "metrics.csv")
    environment = _load_environment(directory)
    return Run(directory, campaign, text, environment, losses, journal, (*journal.notes, *notes))


def _unreadable(path: Path, reason: str) -> UserMistake:
    return UserMistake(f"{path}: {reason}", file=str(path))


def _load_campaign(path: Path) -> tuple[dict[str, Any], str]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        campaign = yaml.safe_load(text)
    except OSError as error:
        raise _unreadable(path, "cannot be read; is this a run directory?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, "is not YAML: " + " ".join(str(error).split())) from error
    if not _names_sites(campaign):
        raise _unreadable(path, "is not a resolved campaign: it does not map each site to its settings")
    return campaign, text


def _names_sites(campaign: Any) -> bool:
    sites = campaign.get("sites") if isinstance(campaign, dict) else None
    if not isinstance(sites, dict) or not all(isinstance(entry or {}, dict) for entry in sites.values()):
        return False
    return all(isinstance((entry or {}).get("tasks") or [], list) for entry in sites.values())


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the campaign, empty where it is absent."""
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _load_environment(directory: Path) -> dict[str, Any]:
    """The record of the environment; a report can do without it."""
    try:
        record = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _load_losses(path: Path) -> tuple[DataFrame, tuple[str, ...]]:
    """Losses by round and (model, task), and a note on those not finite; of repeated rows the last counts."""
    import pandas

    table = pandas.DataFrame(columns=list(METRICS_COLUMNS))
    try:
        if path.exists():
            table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        table = table[list(METRICS_COLUMNS)].drop_duplicates(["round", "model", "task"], keep="last")
        table["round"] = table["round"].astype(int)
    except (KeyError, ValueError, OSError) as error:
        wanted = ", ".join(METRICS_COLUMNS)
        raise _unreadable(path, f"is not a metrics table with the columns {wanted}") from error
    losses = pandas.to_numeric(table["loss"], errors="coerce").astype(float)
    table["loss"] = losses.where(losses.abs() < float("inf"))
    notes = _divergence(table[table["loss"].isna()])
    order = [tuple(pair) for pair in table[["model", "task"]].drop_duplicates().to_numpy()]
    wide = table.pivot(index="round", columns=["model", "task"], values="loss").sort_index()
    return wide.reindex(columns=pandas.MultiIndex.from_tuples(order, names=["model", "task"])), notes


def _divergence(bad: DataFrame) -> tuple[str, ...]:
    """A warning when losses are not finite numbers: what follows is then about the rounds before."""
    if not len(bad):
        return ()
    first = bad.sort_values("round", kind="stable").iloc[0]
    where = f"the first in round {first['round']} (model {first['model']}, task {first['task']})"
    return (f"{_plural(len(bad), 'loss', 'losses')} not finite and left out, {where}.",)


@dataclass(frozen=True)
class Findings:
    """The numbers that the words of the report are made of; losses are means over the tasks."""

    state: str
    finished: bool
    rounds: int
    loss_first: float | None
    loss_last: float | None
    site_losses: Mapping[str, float]
    global_wins: tuple[str, ...]
    owner_wins: tuple[str, ...]
    compared: int
    tokens: int
    nbytes_moved: int
    nbytes_full: int | None
    wall_s: float

    @property
    def best_site(self) -> str | None:
        return min(self.site_losses, key=self.site_losses.__getitem__, default=None)


def find(run: Run) -> Findings:
    """Compute the summary; a task is compared when the global model and some site were scored on it."""
    final, means = run.final_losses, run.mean_losses
    lines = {model: means[model].dropna() for model in run.models}
    ends = {model: float(line.iloc[-1]) for model, line in lines.items() if len(line)}
    scored = lines[GLOBAL] if GLOBAL in ends else None
    wins, owner_wins, compared = _compare(final, run.owners)
    tasks = task_runs(run.journal)
    moved, full = moves(tasks), full_model_nbytes(tasks)
    finished, state = _state(run.journal)
    return Findings(
        state=state,
        finished=finished,
        rounds=0 if scored is None else int(scored.index[-1]),
        loss_first=None if scored is None else float(scored.iloc[0]),
        loss_last=ends.get(GLOBAL),
        site_losses={model: loss for model, loss in ends.items() if model != GLOBAL},
        global_wins=wins,
        owner_wins=owner_wins,
        compared=compared,
        tokens=sum(int(task.result.get("tokens") or 0) for task in trainings(tasks)),
        nbytes_moved=sum(move.nbytes for move in moved),
        nbytes_full=full * len(moved) if full is not None else None,
        wall_s=run.timeline.length_s,
    )


def _state(journal: EventLog) -> tuple[bool, str]:
    if journal.named("campaign_finished"):
        return True, "finished"
    drivers = [event for event in journal.events if event["event"] in ("driver_started", "driver_stopped")]
    if drivers and drivers[-1]["event"] == "driver_stopped":
        return False, f"unfinished: the driver stopped ({drivers[-1].get('reason', 'no reason given')})"
    return False, "unfinished: still running, or its driver was killed"


def _compare(
    final: DataFrame, owners: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Tasks where the global model is below every site; those where an owner is below it; how many in all."""
    wins, owner_wins, compared = [], [], 0
    for task, losses in final.iterrows() if GLOBAL in final else ():
        sites = losses.drop(GLOBAL).dropna()
        if losses[GLOBAL] == losses[GLOBAL] and len(sites):
            compared += 1
            wins += [str(task)] if losses[GLOBAL] < sites.min() else []
            owned = sites.reindex([site for site in owners[str(task)] if site in sites])
            owner_wins += [str(task)] if len(owned) and owned.min() < losses[GLOBAL] else []
    return tuple(wins), tuple(owner_wins), compared


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; `note` says how to read them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def _loss(value: float | None) -> str:
    return NONE if value is None or value != value else f"{value:.3f}"


def _plural(count: int, thing: str, things: str = "") -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {things or thing + 's'}"


def lead_text(run: Run, found: Findings) -> str:
    """The campaign in two or three sentences."""
    strategy = _section(run.campaign, "strategy").get("name", "unnamed")
    size = f"{_plural(len(run.sites), 'site')}, {_plural(len(run.owners), 'task')}, strategy {strategy}"
    planned = run.campaign.get("rounds")
    rounds = _plural(found.rounds, "round") + (f" of {planned} planned" if planned != found.rounds else "")
    if found.loss_first is None or found.loss_last is None:
        return f"{size}; no model has been scored yet."
    if found.rounds == 0:
        return f"{size}. Only the untrained model is scored; its mean test loss is {found.loss_first:.3f}."
    verb = "fell" if found.loss_last < found.loss_first else "did not fall: it went"
    words = f"{size}. In {rounds} the mean test loss of the global model {verb} "
    words += f"from {found.loss_first:.3f} to {found.loss_last:.3f}."
    if found.best_site:
        words += f" The best model of a single site ({found.best_site}) ends at "
        words += f"{found.site_losses[found.best_site]:.3f}."
    return words


def big_numbers(run: Run, found: Findings) -> list[tuple[str, str]]:
    """The few numbers at the top, each with its label."""
    planned = run.campaign.get("rounds")
    numbers = [(f"{found.rounds} of {planned}" if planned else str(found.rounds), "rounds scored")]
    numbers.append((f"{_loss(found.loss_first)} → {_loss(found.loss_last)}", "mean test loss, global model"))
    if found.best_site:
        numbers.append((_loss(found.site_losses[found.best_site]), f"best single site ({found.best_site})"))
    numbers.append((f"{found.tokens:,}", "tokens trained"))
    numbers.append((bytes_text(found.nbytes_moved), f"moved; full model: {_full_text(found)}"))
    numbers.append((seconds_text(found.wall_s), "wall time"))
    return numbers


def _full_text(found: Findings) -> str:
    return "unknown" if found.nbytes_full is None else bytes_text(found.nbytes_full)


def loss_caption(run: Run, found: Findings) -> str:
    if found.loss_last is None or found.rounds == 0:
        return "No trained global model has been scored so far."
    means = run.mean_losses[GLOBAL].dropna()
    risen = [str(number) for number in means.index[1:][means.diff().iloc[1:] > 0]]
    above = sum(loss > found.loss_last for loss in found.site_losses.values())
    text = f"Mean test loss over the tasks: after round {found.rounds} the global model is at "
    sites = _plural(len(found.site_losses), "site")
    text += f"{found.loss_last:.3f}, below the models of {above} of {sites}."
    return text + (f" It rose in round {', '.join(risen)}." if risen else " It fell in every round.")


def task_caption(found: Findings) -> str:
    if not found.compared:
        return "No site's model has been scored yet, so there is nothing to compare the global model with."
    return (
        f"At its last score the global model is below every site on {len(found.global_wins)} of "
        f"{_plural(found.compared, 'task')}; a site that holds the data of a task stays better on it on "
        f"{len(found.owner_wins)} of {found.compared}. Solid: global and the owner; thin: the others."
    )


def heatmap_caption(found: Findings) -> str:
    text = "Final loss on each task; blue is better and red worse than the global model, bold is the best of "
    text += "the row, a frame marks a site that trains on the task."
    named = ", ".join(found.owner_wins[:6]) + (" and others" if len(found.owner_wins) > 6 else "")
    return text + (f" Owners beat the global model on {named}." if named else "")


def timeline_caption(run: Run) -> str:
    timeline = run.timeline
    waits = [i for i in timeline.intervals if i.phase == WAITING]
    text = "What each site did when; dotted lines mark where rounds begin."
    if waits:
        worst = max(waits, key=lambda wait: wait.length_s)
        when = f"in round {worst.round}" if worst.round else "before the first round"
        text += f" The longest wait in a queue was {seconds_text(worst.length_s)} at {worst.row} {when}."
    idle = {site: idle_share(timeline, site) for site in run.sites}
    most = max(idle, key=idle.__getitem__, default=None)
    text += f" {most} was idle most, {idle[most]:.0%} of the time." if most else ""
    if timeline.down:
        gaps = _plural(len(timeline.down), "gap")
        text += f" The driver was down for {seconds_text(timeline.down_s)} in {gaps}."
    return text


def cost_caption(run: Run, found: Findings) -> str:
    text = f"{bytes_text(found.nbytes_moved)} crossed between server and sites"
    if found.nbytes_full:
        times = times_text(found.nbytes_full / max(1, found.nbytes_moved))
        text += f"; the full model in the same transfers: {bytes_text(found.nbytes_full)}, {times}"
    lengths = sum(round_lengths(run.timeline).values())
    if lengths:
        phases = phase_seconds(run.timeline).values()
        trained, waited = (sum(p.get(name, 0.0) for p in phases) / lengths for name in (TRAINING, WAITING))
        text += f". Averaged over sites and rounds, {trained:.0%} of a round went into training "
        text += f"and {waited:.0%} into waiting in queues"
    return text + "."


def paint(run: Run, found: Findings, folder: Path) -> list[tuple[str, str, Path]]:
    """Paint what the run has data for; answers title, caption and file of each picture."""
    tasks, pictures = task_runs(run.journal), []

    def add(title: str, caption: str, name: str, painter: Callable[..., Figure], *inputs: Any) -> None:
        pictures.append((title, caption, save(folder / name, painter, *inputs)))

    if run.models:
        means = (run.mean_losses, run.sites, len(run.owners))
        add("Loss", loss_caption(run, found), "loss.png", loss_figure, *means)
        lines = (run.losses, run.owners, run.sites)
        add("Loss by task", task_caption(found), "loss_per_task.png", task_figure, *lines)
    if found.compared:
        finals = (run.final_losses, run.owners)
        add("Final losses", heatmap_caption(found), "final_heatmap.png", heatmap_figure, *finals)
    if run.timeline.intervals:
        add("Time", timeline_caption(run), "timeline.png", timeline_figure, run.timeline, run.sites)
    if run.timeline.round_starts:
        costs = (moves(tasks), run.timeline, full_model_nbytes(tasks), run.sites)
        add("Bytes and seconds", cost_caption(run, found), "bytes_seconds.png", cost_figure, *costs)
    return pictures


def round_table(run: Run) -> Table:
    """One row per round that was scored or begun."""
    tasks, lengths, means = task_runs(run.journal), round_lengths(run.timeline), run.mean_losses
    used = {e.get("version"): len(e.get("weights") or {}) for e in run.journal.named("aggregated")}
    tokens: Counter[int] = Counter()
    nbytes: Counter[tuple[int, bool]] = Counter()
    for task in trainings(tasks):
        tokens[task.round] += int(task.result.get("tokens") or 0)
    for move in moves(tasks):
        nbytes[move.round, move.out] += move.nbytes
    rows = []
    for number in sorted({*map(int, means.index), *lengths}):
        losses = means.loc[number].dropna() if number in means.index else {}
        sites = {site: losses[site] for site in run.sites if site in losses}
        best = min(sites, key=sites.__getitem__, default=None)
        cells = [str(number), _loss(losses.get(GLOBAL)), f"{_loss(sites[best])} {best}" if best else NONE]
        cells += [str(used.get(number, NONE)), f"{tokens[number]:,}"]
        cells += [bytes_text(nbytes[number, out]) for out in (True, False)]
        rows.append([*cells, seconds_text(lengths[number]) if number in lengths else NONE])
    columns = ("round", "global loss", "best site", "updates used", "tokens", "bytes out", "bytes in")
    note = "Losses are unweighted means over the tasks; round 0 is untrained."
    return Table("Rounds", (*columns, "length"), rows, note)


def task_table(run: Run) -> Table:
    """Final losses by task; the owner is the site whose data hold the task."""
    final = run.final_losses
    rows = [
        [task, ", ".join(run.owners[task]) or NONE, *(_loss(value) for value in losses)]
        for task, losses in final.iterrows()
    ]
    return Table("Final loss by task", ("task", "owner", *run.models), rows, "The last score of each model.")


def site_table(run: Run) -> Table:
    """One row per site: what it holds, what it did, where its time went."""
    tasks, timeline, rows = task_runs(run.journal), run.timeline, []
    for site in run.sites:
        entry = run.campaign["sites"][site] or {}
        trained = [task.result for task in trainings(tasks) if task.site == site]
        counted = ("samples", "tokens", "steps_done")
        sums = [sum(int(result.get(key) or 0) for result in trained) for key in counted]
        spent = [timeline.seconds(site, p) for p in (TRAINING, WAITING)]
        spent.append(timeline.seconds(site, STAGING_OUT, STAGING_IN))
        held = sum(site in owners for owners in run.owners.values())
        cells = [site, str(entry.get("config") or site), str(held), str(len(trained))]
        cells += [f"{value:,}" for value in sums] + [f"{seconds:,.0f}" for seconds in spent]
        rows.append([*cells, f"{idle_share(timeline, site):.0%}"])
    columns = ("site", "config", "tasks", "rounds", "samples", "tokens", "steps", "training [s]", "queue [s]")
    note = "Idle: the share of the time with a driver in which the site neither moved, waited nor trained."
    return Table("Sites", (*columns, "staging [s]", "idle"), rows, note)


def trouble_table(run: Run) -> Table | None:
    """Failed tasks and refused updates in the order of the journal; None when there were none."""
    names = {"task_failed": "task failed", "update_refused": "update refused"}
    opened = run.journal.events[0]["time"] if run.journal.events else 0.0
    rows = []
    for event in run.journal.events:
        if event["event"] in names:
            words = [str(event[key]) for key in ("app", "error", "message", "reason") if event.get(key)]
            when = seconds_text(event["time"] - opened)
            cells = [when, str(event.get("round", NONE)), str(event.get("site", NONE)), names[event["event"]]]
            rows.append([*cells, ": ".join(words)])
    columns = ("after", "round", "site", "what", "why")
    return Table("Refused updates and failures", columns, rows) if rows else None


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: campaign report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f5f7f9;
  --page: #fff; --warn: #8a4b00; --warnpage: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a3adb8; --line: #3a424b;
  --card: #22272d; --page: #181b1f; --warn: #ffcf8a; --warnpage: #3a2c14; } }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--page); max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; }
p { margin: .4rem 0; max-width: 56rem; } .soft, figcaption { color: var(--soft); }
.lead { font-size: 1.1rem; }
.warn { color: var(--warn); background: var(--warnpage); padding: .5rem .8rem; border-radius: .4rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.numbers div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.numbers b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; margin: .3rem auto; background: #fff; border-radius: .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .text th, .text td { text-align: left; } thead th { color: var(--soft); }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --card: #f4f4f4;
  --page: #fff; --warn: #000; --warnpage: #eee; }
  body { font-size: 11px; max-width: none; padding: 0; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .wide { overflow: visible; } }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p class="soft">{{ subtitle }}</p>
{% if not found.finished %}
<p class="warn">This campaign is {{ found.state }}. The report shows what is there.</p>
{% endif %}
{% for note in notes %}<p class="warn">{{ note }}</p>
{% endfor %}
<p class="lead">{{ lead }}</p>
<div class="numbers">
{% for value, label in numbers %}<div><b>{{ value }}</b><span class="soft">{{ label }}</span></div>
{% endfor %}</div>
{% for title, caption, image in pictures %}
<h2>{{ title }}</h2>
<figure><img alt="{{ title }}" src="data:image/png;base64,{{ image }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
{% if table.note %}<p class="soft">{{ table.note }}</p>{% endif %}
<div class="wide"><table{% if table.title.startswith("Refused") %} class="text"{% endif %}>
<thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<details><summary>Campaign settings</summary><pre>{{ campaign }}</pre></details>
<details><summary>Environment</summary><pre>{{ environment }}</pre></details>
</body>
</html>
"""


def subtitle(run: Run) -> str:
    """Model, adapter, seed and the day, in one line."""
    model = _section(run.campaign, "model")
    adapter = _section(model, "adapter")
    words = [f"model {model.get('source', 'unknown')} ({model.get('dtype', 'unknown dtype')})"]
    settings = ", ".join(f"{key} {adapter[key]}" for key in ("rank", "alpha") if key in adapter)
    method = f"{adapter.get('method', 'adapter')} {settings}".strip()
    words.append(method if adapter else "all parameters trained")
    words.append(f"seed {run.campaign.get('seed', 'unknown')}")
    if run.journal.events:
        opened = datetime.fromtimestamp(run.journal.events[0]["time"], UTC)
        words.append(f"opened {opened:%Y-%m-%d %H:%M} UTC")
    return " · ".join(words)


def page(run: Run, found: Findings, pictures: Sequence[tuple[str, str, Path]]) -> str:
    """The whole page as text, pictures inside; everything that comes from the run is escaped."""
    import jinja2

    images = [(t, c, base64.b64encode(path.read_bytes()).decode("ascii")) for t, c, path in pictures]
    tables = [trouble_table(run), round_table(run), task_table(run), site_table(run)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        name=run.campaign.get("name") or run.directory.name,
        subtitle=subtitle(run),
        found=found,
        lead=lead_text(run, found),
        numbers=big_numbers(run, found),
        pictures=images,
        tables=[table for table in tables if table is not None and table.rows],
        notes=run.notes,
        campaign=run.campaign_text,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png` into `out` (the run directory) and answer with the page's path.

    Raises UserMistake when the run directory is missing or damaged, StorageError when nothing can be written.
    """
    run = load_run(run_dir)
    folder = run_dir if out is None else out
    found = find(run)
    pictures = paint(run, found, folder / "figures")
    write_text(folder / "report.html", page(run, found, pictures))
    return folder / "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the report of a run, finished or not.")
    parser.add_argument("run_dir", type=Path, metavar="runs/NAME", help="the run directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, not into the run directory")
    chosen = parser.parse_args(arguments)
    try:
        written = write_report(chosen.run_dir, chosen.out)
    except CrossfedError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"report: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
