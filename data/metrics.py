"""Metrics of the tasks, after LlaSMol (Yu et al. 2024, arXiv 2402.09391, section 4).

Every kind of task has the metric `answered`, the share of predictions with an answer of the right form. Shares are of
all predictions, so that a missing answer never improves a score, except where a docstring says otherwise.
"""

from __future__ import annotations

import collections
import importlib
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from data.tasks import Metric, Tags, metric_kind, output_tags

logger = logging.getLogger(__name__)

# The public set separates parts of one answer (components of a mixture, parts of a name) by ";".
PART_SEPARATOR = ";"
ATOMS = re.compile(r"([A-Z][a-z]?)(\d*)")
FINGERPRINT_RADIUS = 2
FINGERPRINT_BITS = 2048

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
    inputs: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the metrics of one task over its samples.

    Args:
        task: task id.
        predictions: answers of `extract_answer` (None: no answer); text that still has its tags is extracted first.
        references: right answers of each sample, one or several.
        inputs: questions; samples with the same question share their right answers (a product has many routes).

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
    if inputs is not None:
        golds = _pool(golds, inputs)
    return _SCORERS[kind](answers, golds)


def formula_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `element_match`: the same elements in the same numbers, in any order."""
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


def smiles_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `exact_match` of identifiers (InChI), `validity` and `morgan_tanimoto`.

    The last is the similarity of Morgan fingerprints (radius 2) to the nearest right answer, as the mean over valid
    answers only (0 without any). Without rdkit only `exact_match`, of the text with its parts in any order, and
    `answered` are returned.
    """
    answered = _share([a is not None for a in answers])
    chem = _rdkit()
    if chem is None:
        logger.warning("SMILES are compared as text only; for rdkit's checks: pip install 'crossfed[chemistry]'")
        right = [
            a is not None and any(_components(a) == _components(g) for g in group)
            for a, group in zip(answers, golds, strict=True)
        ]
        return {"exact_match": _share(right), "answered": answered}
    with importlib.import_module("rdkit.rdBase").BlockLogs():
        found = [_compare_molecules(chem, a, group) for a, group in zip(answers, golds, strict=True)]
    similarities = [similarity for _, similarity in found if similarity is not None]
    return {
        "exact_match": _share([same for same, _ in found]),
        "validity": len(similarities) / len(found),
        "morgan_tanimoto": _mean(similarities),
        "answered": answered,
    }


def number_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `rmse` over the answers that are numbers (left out if none is), and `answered`, their share."""
    squares = []
    for answer, group in zip(answers, golds, strict=True):
        value = number_of(answer)
        if value is not None:
            squares.append(min((value - float(gold)) ** 2 for gold in group))
    scores = {"answered": len(squares) / len(answers)}
    return {"rmse": math.sqrt(_mean(squares)), **scores} if squares else scores


def boolean_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `accuracy` of yes or no; anything else is a wrong answer."""
    values = [None if a is None else truth_of(a) for a in answers]
    right = [
        value is not None and value in {truth_of(g) for g in group} for value, group in zip(values, golds, strict=True)
    ]
    return {"accuracy": _share(right), "answered": _share([v is not None for v in values])}


def text_scores(answers: Sequence[Prediction], golds: Golds) -> dict[str, float]:
    """Return `exact_match` and `rouge_l`: ROUGE-L F1 on lower-case words (Lin 2004), the best over right answers.

    LlaSMol reports METEOR, which needs WordNet, and ROUGE-L, which needs no data.
    """
    pairs = list(zip(answers, golds, strict=True))
    return {
        "exact_match": _share([a in group for a, group in pairs]),
        "rouge_l": _mean([max(rouge_l(a or "", g) for g in group) for a, group in pairs]),
        "answered": _share([a is not None for a in answers]),
    }


_SCORERS: dict[Metric, Callable[[Sequence[Prediction], Golds], dict[str, float]]] = {
    "formula": formula_scores,
    "name": name_scores,
    "smiles": smiles_scores,
    "number": number_scores,
    "boolean": boolean_scores,
    "text": text_scores,
}


def element_counts(formula: str) -> collections.Counter[str] | None:
    """Return element -> number of atoms over all parts of a formula such as C2H6O; None if it is not a formula."""
    counts: collections.Counter[str] = collections.Counter()
    for part in re.split("[;.]", formula):
        if not re.fullmatch(rf"(?:{ATOMS.pattern})+", part.strip()):
            return None
        for element, number in ATOMS.findall(part):
            counts[element] += int(number or 1)
    return counts


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
    """Return True for yes, False for no, None for anything else."""
    return {"yes": True, "true": True, "no": False, "false": False}.get(answer.strip(" .").lower())


def rouge_l(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words, 0 to 1."""
    given, right = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
    common = _longest_common_subsequence(given, right)
    return 2 * common / (len(given) + len(right)) if common else 0.0


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        previous = 0  # the value up and to the left in the usual table
        for column, candidate in enumerate(other, start=1):
            above = row[column]
            row[column] = previous + 1 if word == candidate else max(above, row[column - 1])
            previous = above
    return row[-1]


def _compare_molecules(chem: Any, answer: Prediction, golds: Sequence[str]) -> tuple[bool, float | None]:
    """Return (same molecule as a right answer, Tanimoto similarity to the nearest one or None if invalid)."""
    mol = _molecule(chem, answer)
    if mol is None:
        return False, None
    known = [gold for gold in (_molecule(chem, g) for g in golds) if gold is not None]
    same = any(_identifier(chem, mol) == _identifier(chem, gold) for gold in known)
    make = importlib.import_module("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS
    )
    similar = importlib.import_module("rdkit.DataStructs").TanimotoSimilarity
    mine = make.GetFingerprint(mol)
    return same, max((similar(mine, make.GetFingerprint(gold)) for gold in known), default=0.0)


def _molecule(chem: Any, smiles: Prediction) -> Any:
    """Return the molecule, None if the text is empty or not valid SMILES."""
    joined = ".".join(_components(smiles)) if smiles else ""
    return chem.MolFromSmiles(joined) if joined else None


def _identifier(chem: Any, mol: Any) -> str:
    """Return the InChI, which does not depend on the drawing of a structure; canonical SMILES if InChI fails."""
    return chem.MolToInchi(mol) or chem.MolToSmiles(mol)


def _components(smiles: str) -> list[str]:
    return sorted(part.strip() for part in re.split("[;.]", smiles) if part.strip())


def _rdkit() -> Any:
    try:
        return importlib.import_module("rdkit.Chem")
    except ImportError:
        return None


def _bare(text: Prediction, tags: Tags) -> Prediction:
    if text is None:
        return None
    if tags[0] is not None and tags[0] in text:
        return extract_answer(text, tags)
    return text.strip() or None


def _pool(golds: Golds, inputs: Sequence[str]) -> Golds:
    """Return each sample's references together with those of all samples with the same input."""
    together: dict[str, dict[str, None]] = {}
    for group, question in zip(golds, inputs, strict=True):
        together.setdefault(question, {}).update(dict.fromkeys(group))
    return [list(together[question]) for question in inputs]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
