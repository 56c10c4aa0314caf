"""Metrics of the tasks, with the definitions of LlaSMol (Yu et al. 2024, arXiv 2402.09391) and of its public code.

Every kind of task has the metric `answered`, the share of predictions with an answer of the right form. Shares are of
all predictions, so that a missing answer never improves a score; what is over the answers only is named in each
docstring, as it is in LlaSMol. Differences from LlaSMol are in `docs/data.md`.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence

from data.molecules import reactant_scores, smiles_scores
from data.tasks import CANONICAL_ORDER, Metric, Record, Tags, metric_kind, output_tags
from data.text_overlap import text_scores

# The public set separates parts of one answer (components of a mixture, parts of a name) by ";".
PART_SEPARATOR = ";"
# Kinds with several right answers to one question; a number or a yes is right for its own sample only.
SHARED_GOLDS: tuple[Metric, ...] = ("formula", "name", "smiles", "text")
FORMULA_TOKEN = re.compile(r"([A-Z][a-z]?)(\d*)|([([{])|([)\]}])(\d*)")
CHARGES = re.compile(r"(?:[+-]\d*)+$")
CHARGE = "charge"

Prediction = str | None
Golds = list[list[str]]


def extract_answer(text: str, task_or_tags: str | Tags) -> str | None:
    """Return the answer in a generated text: between the task's tags, or the whole text if it has none.

    None if there is no answer: a tag is missing, or there is nothing between the tags.
    """
    left, right = output_tags(task_or_tags) if isinstance(task_or_tags, str) else task_or_tags
    if left is None or right is None:
        return text.strip() or None
    _, opened, rest = text.partition(left)
    answer, closed, _ = rest.partition(right)
    return (answer.strip() or None) if opened and closed else None


def score(
    task: str,
    predictions: Sequence[Prediction],
    references: Sequence[Sequence[str] | str],
    inputs: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Return the metrics of one task over its samples.

    Args:
        task: task id.
        predictions: answers of `extract_answer` (None: no answer); text that still has its tags is extracted first.
        references: right answers of each sample, one or several.
        inputs: questions; samples with the same question share their right answers where one question can have
            several (a product has many routes), never those of a number or of a yes or no.

    Raises:
        ValueError: an unknown task, no sample, or lists of different lengths.
    """
    kind = metric_kind(task)
    lengths = {len(predictions), len(references)} | ({len(inputs)} if inputs is not None else set())
    if len(lengths) != 1 or not predictions:
        raise ValueError(f"{task}: needs the same number of predictions, references and inputs, and at least one")
    answers = [_bare(p, output_tags(task)) for p in predictions]
    golds = [[r] if isinstance(r, str) else list(r) for r in references]
    if any(not g for g in golds):
        raise ValueError(f"{task}: a sample has no reference")
    golds = [[_bare(g, output_tags(task)) or "" for g in group] for group in golds]
    if inputs is not None and kind in SHARED_GOLDS:
        golds = _pool(golds, inputs)
    return (reactant_scores if task == "retrosynthesis" else _SCORERS[kind])(answers, golds)


def right_answers(records: Iterable[Record]) -> dict[Hashable, list[str]]:
    """Return question -> its right answers over a split, of the tasks where one question can have several.

    LlaSMol takes them from the whole test split, whatever part of it is scored.
    """
    found: dict[Hashable, dict[str, None]] = {}
    for record in records:
        if record["task"] in CANONICAL_ORDER and metric_kind(record["task"]) in SHARED_GOLDS:
            found.setdefault(question_of(record), {})[record["raw_output"]] = None
    return {question: list(golds) for question, golds in found.items()}


def question_of(record: Record) -> Hashable:
    """Return what two records have in common if they ask the same."""
    return record["task"], record["raw_input"], record.get("target")


def formula_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `element_match`: the same elements in the same numbers, in any order, and the same charge."""
    counts = [None if a is None else element_counts(a) for a in answers]
    right = [
        count is not None and any(count == element_counts(g) for g in group)
        for count, group in zip(counts, golds, strict=True)
    ]
    return {"element_match": _share(right), "answered": _share([c is not None for c in counts])}


def name_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `split_match`: the same parts between ";", in any order."""
    right = [
        a is not None and any(name_parts(a) == name_parts(g) for g in group)
        for a, group in zip(answers, golds, strict=True)
    ]
    return {"split_match": _share(right), "answered": _share([a is not None for a in answers])}


def number_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `rmse` over the answers that are numbers (left out if none is), and `answered`, their share."""
    squares = []
    for answer, group in zip(answers, golds, strict=True):
        value = number_of(answer)
        if value is not None:
            squares.append(min((value - float(gold)) ** 2 for gold in group))
    scores = {"answered": len(squares) / len(answers)}
    return {"rmse": math.sqrt(sum(squares) / len(squares)), **scores} if squares else scores


def boolean_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return the scores of yes or no; anything else is a wrong answer.

    `accuracy` is a share of all samples. `mcc`, `f1`, `precision`, `recall` and `roc_auc` (of yes) are over the samples
    with an answer, and left out if the right answers of these are all the same: a model that always says the frequent
    answer has a high accuracy, an MCC and an F1 of 0 and a ROC-AUC of 0.5.
    """
    values = [None if a is None else truth_of(a) for a in answers]
    truths = [truth_of(group[0]) for group in golds]
    right = [value is not None and value == truth for value, truth in zip(values, truths, strict=True)]
    given = [(bool(t), v) for v, t in zip(values, truths, strict=True) if v is not None]
    scores = {"accuracy": _share(right), "answered": len(given) / len(answers)}
    return {**scores, **_class_scores(given)} if len({truth for truth, _ in given}) == 2 else scores


def _class_scores(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Return the scores of (right answer, answer) pairs that hold both right answers."""
    measures = importlib.import_module("sklearn.metrics")
    truths, values = [truth for truth, _ in pairs], [value for _, value in pairs]
    precision, recall, f1, _ = measures.precision_recall_fscore_support(
        truths, values, average="binary", zero_division=0
    )
    return {
        "mcc": float(measures.matthews_corrcoef(truths, values)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "roc_auc": float(measures.roc_auc_score(truths, values)),
    }


_SCORERS: dict[Metric, Callable[[Sequence[Prediction], Golds], dict[str, float]]] = {
    "formula": formula_scores,
    "name": name_scores,
    "smiles": smiles_scores,
    "number": number_scores,
    "boolean": boolean_scores,
    "text": text_scores,
}


def element_counts(formula: str) -> dict[str, int] | None:
    """Return element -> number of atoms over all parts of a formula, and its net charge if that is not 0.

    C2H6O, C6H14N+, C2O4-2, Cu(NH3)4+2, and parts that are separated by "." or ";" are formulas; None for other text.
    """
    total: dict[str, int] = {}
    for part in re.split("[;.]", formula):
        counts = _part_counts(part.strip())
        if counts is None:
            return None
        for element, number in counts.items():
            total[element] = total.get(element, 0) + number
    return {element: number for element, number in total.items() if number or element != CHARGE}


def _part_counts(formula: str) -> dict[str, int] | None:
    charges = CHARGES.search(formula)
    end = charges.start() if charges else len(formula)
    counts = _atom_counts(formula[:end])
    if counts is None or charges is None:
        return counts
    net = sum(int(f"{sign}{number or 1}") for sign, number in re.findall(r"([+-])(\d*)", charges.group()))
    return {**counts, CHARGE: net}


def _atom_counts(formula: str) -> dict[str, int] | None:
    """Return element -> number of atoms of a formula without charge; brackets may be nested."""
    stack: list[dict[str, int]] = [{}]
    position = 0
    while position < len(formula):
        token = FORMULA_TOKEN.match(formula, position)
        if token is None:
            return None
        position, (element, number, opened, closed, times) = token.end(), token.groups()
        if opened:
            stack.append({})
            continue
        if closed and len(stack) == 1:
            return None
        group, factor = (stack.pop(), int(times or 1)) if closed else ({element: int(number or 1)}, 1)
        for name, count in group.items():
            stack[-1][name] = stack[-1].get(name, 0) + count * factor
    return stack[0] or None if len(stack) == 1 else None


def name_parts(name: str) -> list[str]:
    """Return the parts of a name, sorted."""
    return sorted(part.strip() for part in name.split(PART_SEPARATOR) if part.strip())


def number_of(answer: Prediction) -> float | None:
    """Return the answer as a finite number, or None."""
    try:
        value = float(answer or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def truth_of(answer: str) -> bool | None:
    """Return True for yes, False for no, in any case; None for anything else."""
    return {"yes": True, "no": False}.get(answer.strip().lower())


def _bare(text: Prediction, tags: Tags) -> Prediction:
    if text is None:
        return None
    if tags[0] is not None and tags[0] in text:
        return extract_answer(text, tags)
    return text.strip() or None


def _pool(golds: Golds, inputs: Sequence[Hashable]) -> Golds:
    """Return each sample's references together with those of all samples with the same input."""
    together: dict[Hashable, dict[str, None]] = {}
    for group, question in zip(golds, inputs, strict=True):
        together.setdefault(question, {}).update(dict.fromkeys(group))
    return [list(together[question]) for question in inputs]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
