"""Tasks by name: families, canonical order, metrics, tags, and new records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data.chemistry_tasks import (
    BOOLEAN,
    CHEMISTRY_TASKS,
    FIELDS,
    FORMULA,
    IUPAC,
    NUMBER,
    SMILES,
    TAGS_OF_METRIC,
    UNTAGGED,
    Metric,
    Provenance,
    Record,
    Tags,
    TaskDefinition,
)
from data.names import did_you_mean

__all__ = [
    "BOOLEAN",
    "CANONICAL_ORDER",
    "EMBEDDED",
    "EMBEDDED_FAMILIES",
    "EMBEDDED_TASKS",
    "FAMILIES",
    "FIELDS",
    "FORMULA",
    "IUPAC",
    "NUMBER",
    "SMILES",
    "SMOLINSTRUCT_FAMILIES",
    "SMOLINSTRUCT_METRICS",
    "UNTAGGED",
    "Metric",
    "Provenance",
    "Record",
    "Tags",
    "TaskDefinition",
    "expand_tasks",
    "families_of",
    "family_of",
    "in_canonical_order",
    "metric_kind",
    "output_tags",
    "record",
    "tagged",
]

EMBEDDED = "embedded"

FAMILIES = ("name_conversion", "property_prediction", "molecule_description", "chemical_reaction")

EMBEDDED_TASKS: dict[str, TaskDefinition] = {t.id: t for t in CHEMISTRY_TASKS}

EMBEDDED_FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(t.id for t in EMBEDDED_TASKS.values() if t.family == family) for family in FAMILIES
}

SMOLINSTRUCT_FAMILIES: dict[str, tuple[str, ...]] = {
    **EMBEDDED_FAMILIES,
    "property_prediction": tuple(
        f"property_prediction-{name}" for name in ("esol", "lipo", "bbbp", "clintox", "hiv", "sider")
    ),
}

SMOLINSTRUCT_METRICS: dict[str, Metric] = {
    **{
        name: EMBEDDED_TASKS[name].metric
        for names in SMOLINSTRUCT_FAMILIES.values()
        for name in names
        if name in EMBEDDED_TASKS
    },
    "property_prediction-lipo": "number",
    "property_prediction-bbbp": "boolean",
    "property_prediction-clintox": "boolean",
    "property_prediction-hiv": "boolean",
    "property_prediction-sider": "boolean",
}

# One order for all lists of tasks, so that equal sets have equal content hashes everywhere.
CANONICAL_ORDER: tuple[str, ...] = tuple(
    dict.fromkeys(
        name for f in FAMILIES for families in (SMOLINSTRUCT_FAMILIES, EMBEDDED_FAMILIES) for name in families[f]
    )
)


def in_canonical_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without duplicates: known tasks in the order of the families, then others by name."""
    rank = {name: i for i, name in enumerate(CANONICAL_ORDER)}
    return tuple(sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name)))


def families_of(source: str) -> dict[str, tuple[str, ...]]:
    """Return the families of a source and their tasks.

    Args:
        source: "embedded", or the path of a copy of the public set.

    A folder with a manifest.json was written by our own generator and holds the embedded tasks.
    """
    if source == EMBEDDED or (Path(source).expanduser() / "manifest.json").is_file():
        return EMBEDDED_FAMILIES
    return SMOLINSTRUCT_FAMILIES


def family_of(task_id: str) -> str | None:
    """Return the family of a known task, None for a user's own task."""
    for families in (EMBEDDED_FAMILIES, SMOLINSTRUCT_FAMILIES):
        for family, names in families.items():
            if task_id in names:
                return family
    return None


def expand_tasks(names: Iterable[str], source: str) -> tuple[str, ...]:
    """Return the task ids of family names and task ids, without duplicates, in canonical order.

    For a path the ids of both sets are accepted, since a folder may contain either; a family name is replaced by its
    tasks in `families_of`.

    Raises:
        ValueError: a name is neither a family nor a task.
    """
    families = families_of(source)
    known = CANONICAL_ORDER if source != EMBEDDED else tuple(EMBEDDED_TASKS)
    chosen: list[str] = []
    for name in names:
        if name not in families and name not in known:
            raise ValueError(
                f"unknown task or family {name!r} for the data source {source!r}"
                + did_you_mean(name, (*families, *known))
            )
        chosen.extend(families.get(name, (name,)))
    return in_canonical_order(chosen)


def metric_kind(task_id: str) -> Metric:
    """Return the kind of metric of an embedded or a public task; raise ValueError for any other name."""
    if task_id in EMBEDDED_TASKS:
        return EMBEDDED_TASKS[task_id].metric
    if task_id in SMOLINSTRUCT_METRICS:
        return SMOLINSTRUCT_METRICS[task_id]
    raise ValueError(f"no metric is known for the task {task_id!r}" + did_you_mean(task_id, CANONICAL_ORDER))


def output_tags(task_id: str) -> Tags:
    """Return the tags around the answer of an embedded or a public task, (None, None) if it has none."""
    return TAGS_OF_METRIC[metric_kind(task_id)]


def tagged(value: str, tags: Tags) -> str:
    """Return the value between its tags with a space on both sides, as the public set writes it."""
    return value if tags[0] is None else f"{tags[0]} {value} {tags[1]}"


def record(
    task_id: str, raw_input: str, raw_output: str, split: str, question: int, answer: int, sample_id: str
) -> Record:
    """Return a complete record; `question` and `answer` select phrasings, modulo their number."""
    task = EMBEDDED_TASKS[task_id]
    question_text = task.questions[question % len(task.questions)]
    answer_text = task.answers[answer % len(task.answers)]
    return {
        "input": question_text.replace("<INPUT>", tagged(raw_input, task.input_tags)),
        "output": answer_text.replace("<OUTPUT>", tagged(raw_output, task.output_tags)),
        "raw_input": raw_input,
        "raw_output": raw_output,
        "split": split,
        "task": task_id,
        "input_core_tag_left": task.input_tags[0],
        "input_core_tag_right": task.input_tags[1],
        "output_core_tag_left": task.output_tags[0],
        "output_core_tag_right": task.output_tags[1],
        "target": None,
        "sample_id": sample_id,
    }
