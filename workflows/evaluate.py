"""Evaluate the model of a run, finished or not, and the model it started from, by loss and by the tasks' metrics.

python workflows/evaluate.py RUN_DIR [--split test] [--per-task 5] [--tasks A,B] [--tokens N] [--threads 1]
                             [--round N | --best] [--no-base]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import UserMistake
from apps.base.files import write_text
from apps.evaluation.losses import TestSet, task_losses
from apps.models.batches import by_length, collate
from apps.models.encoding import encode
from data.metrics import extract_answer, question_of, right_answers, score
from data.records import iter_records, load_records
from data.tasks import Record, expand_tasks, families_of
from workflows.console.command import EXIT_CODES, carry_out, leave, positive
from workflows.console.options import add_model_choice
from workflows.console.units import plural
from workflows.evaluation.scores import CUT, LOSS, Score, as_csv, as_table, kind_of, remarks

if TYPE_CHECKING:
    from workflows.evaluation.choice import OpenedRun
    from workflows.evaluation.loading import LoadedModel

Golds = Mapping[Hashable, Sequence[str]]  # question -> its right answers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Evaluate the model of a run, of an unfinished one the newest, and the model it started from: the "
        "loss, and the tasks' metrics of generated answers. Writes RUN_DIR/evaluation.csv. Generating answers is slow "
        "on CPUs: five samples of each of the demo's 14 tasks take about three minutes on one core.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run, finished or not: runs/NAME")
    add_model_choice(parser)
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--per-task", type=positive, default=5, metavar="N", help="samples of each task (default: 5)")
    parser.add_argument("--tasks", metavar="A,B,...", help="tasks or families (default: all of the campaign)")
    parser.add_argument(
        "--base", action=argparse.BooleanOptionalAction, default=True, help="evaluate the base model too"
    )
    parser.add_argument(
        "--tokens", type=positive, metavar="N", help="limit for an answer (default: a task's longest right answer)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: the campaign's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return carry_out(lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> None:
    """Read the samples, load the models, score them, print and write the scores."""
    from rich.console import Console

    from workflows.evaluation.choice import open_run
    from workflows.evaluation.loading import configure_libraries, load_models  # loads pydantic

    run = open_run(options.run_dir, options.round, options.best)
    records, golds = read_records(run, options)
    configure_libraries(run, options.threads)
    with Console(stderr=True).status("loading the model"):
        models = load_models(run, options.base)
    scores = score_all(run, models, records, golds, options)
    target = run.path / f"evaluation{run.suffix}.csv"
    write_text(target, as_csv(scores))
    out = Console(highlight=False)
    out.print(as_table(scores))
    chosen = [f"trained: {run.text}."] if run.text else []
    for line in (*chosen, sample_text(run, scores, options.split), *remarks(scores), f"Written: {target}"):
        out.print(line, soft_wrap=True, markup=False)


def read_records(run: OpenedRun, options: argparse.Namespace) -> tuple[list[Record], Golds]:
    """Read the samples to evaluate on, and all right answers to their questions in the whole split.

    Raises:
        UserMistake: an unknown task or split, or missing data.
    """
    data = run.campaign.data
    wanted = [name.strip() for name in options.tasks.split(",")] if options.tasks else data.tasks
    try:
        tasks = expand_tasks(wanted or families_of(data.source), data.source)
        records = load_records(data.source, options.split, tasks, options.per_task)
        whole = "test" if options.split == "test_subset" else options.split
        return records, right_answers(iter_records(data.source, whole, tasks))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise UserMistake(str(error)) from None


def score_all(
    run: OpenedRun,
    models: Sequence[LoadedModel],
    records: Sequence[Record],
    golds: Golds,
    options: argparse.Namespace,
) -> list[Score]:
    """Return all scores of all models; show a progress bar meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    scores: list[Score] = []
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        for loaded in models:
            total = sum(kind_of(record["task"]) is not None for record in records)
            bar = progress.add_task(f"{loaded.name} model answers", total=total)
            scores += losses(run, loaded, records)
            scores += metrics(run, loaded, records, options.tokens, golds, partial(progress.advance, bar))
    return scores


def sample_text(run: OpenedRun, scores: Sequence[Score], split: str) -> str:
    """Return the line about the samples behind the scores."""
    most, own = max(s.samples for s in scores), run.campaign.evaluation.per_task or "all"
    return f"Split {split}, {plural(most, 'sample')} of a task (the campaign's own losses use {own} of a task)."


def losses(run: OpenedRun, loaded: LoadedModel, records: Sequence[Record]) -> list[Score]:
    """Return the loss on each task, computed as in the campaign."""
    from workflows.evaluation.loading import data_spec

    model = loaded.model
    samples = encode(records, model.tokenizer, data_spec(run))
    groups = by_length(samples, run.campaign.evaluation.batch_size)
    pad: Any = model.tokenizer.pad_token_id
    tests = TestSet([collate(group, pad).to(model.network.device) for group in groups], [])
    with loaded.active():
        found = task_losses(model, tests)
    return [Score(loaded.name, task, LOSS, entry["loss"], entry["samples"]) for task, entry in found.items()]


def metrics(
    run: OpenedRun,
    loaded: LoadedModel,
    records: Sequence[Record],
    tokens: int | None,
    golds: Golds | None = None,
    on_done: Callable[[int], object] = lambda _count: None,
) -> list[Score]:
    """Return the tasks' metrics of generated answers; a user's task without a metric gives no score.

    Args:
        run: the run.
        loaded: the model.
        records: the samples.
        tokens: limit for an answer; None: what the longest right answer of the task takes.
        golds: all right answers by question; None: a sample's own.
        on_done: called after each batch with its number of answers.
    """
    from workflows.evaluation.generation import answer_limit, generate_answers
    from workflows.evaluation.loading import data_spec

    spec, scores = data_spec(run), []
    for task in dict.fromkeys(record["task"] for record in records if kind_of(record["task"])):
        mine = [record for record in records if record["task"] == task]
        limit = tokens or answer_limit(loaded.model, [record["output"] for record in mine])
        answers = generate_answers(loaded, [record["input"] for record in mine], spec, limit, on_done)
        scores += task_scores(loaded.name, task, list(zip(mine, [a.text for a in answers], strict=True)), golds)
        scores.append(Score(loaded.name, task, CUT, sum(a.cut for a in answers) / len(answers), len(answers)))
    return scores


def task_scores(model: str, task: str, pairs: Sequence[tuple[Record, str]], golds: Golds | None = None) -> list[Score]:
    """Return all metrics of one task, from its samples each with the model's answer."""
    predictions = [extract_answer(text, task) for _, text in pairs]
    references = [(golds or {}).get(question_of(record)) or [record["raw_output"]] for record, _ in pairs]
    values = score(task, predictions, references)
    return [Score(model, task, metric, value, len(pairs)) for metric, value in values.items()]


if __name__ == "__main__":
    leave(main)
