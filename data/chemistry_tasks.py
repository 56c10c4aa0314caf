"""Definitions of the embedded chemistry set: types of a record and of a task, and the fourteen tasks.

A record has the fields of a row of the public SMolInstruct set (arXiv 2402.09391), so that all code reads that set and
the embedded one in the same way. The phrasings are our own. A public task id is used only if the embedded task asks the
same question; other properties have ids of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

Tags = tuple[str | None, str | None]
Metric = Literal["formula", "name", "smiles", "number", "boolean", "text"]
Provenance = Literal["measured", "registered", "rule"]


class Record(TypedDict):
    """One sample; `input` and `output` are sentences, `raw_*` the values between their tags.

    Tags are None if a task has none; `target` is set only for tasks with several questions about one molecule (SIDER);
    `sample_id` is unique within a source.
    """

    input: str
    output: str
    raw_input: str
    raw_output: str
    split: str
    task: str
    input_core_tag_left: str | None
    input_core_tag_right: str | None
    output_core_tag_left: str | None
    output_core_tag_right: str | None
    target: str | None
    sample_id: str


FIELDS: tuple[str, ...] = tuple(Record.__annotations__)

SMILES: Tags = ("<SMILES>", "</SMILES>")
IUPAC: Tags = ("<IUPAC>", "</IUPAC>")
FORMULA: Tags = ("<MOLFORMULA>", "</MOLFORMULA>")
NUMBER: Tags = ("<NUMBER>", "</NUMBER>")
BOOLEAN: Tags = ("<BOOLEAN>", "</BOOLEAN>")
UNTAGGED: Tags = (None, None)

TAGS_OF_METRIC: dict[Metric, Tags] = {
    "formula": FORMULA,
    "name": IUPAC,
    "smiles": SMILES,
    "number": NUMBER,
    "boolean": BOOLEAN,
    "text": UNTAGGED,
}


@dataclass(frozen=True)
class TaskDefinition:
    """Definition of one task of the embedded set.

    `questions` contain the placeholder <INPUT>, `answers` the placeholder <OUTPUT>. `provenance` is the source of a
    pair of question and answer: "measured" (a measurement in a table), "registered" (an entry of a registry or of an
    expert classification), "rule" (computed from the structure, or by textbook rules).
    """

    id: str
    family: str
    input_tags: Tags
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    metric: Metric
    provenance: Provenance

    @property
    def output_tags(self) -> Tags:
        """Return the tags around an answer."""
        return TAGS_OF_METRIC[self.metric]


_NAMES = (
    TaskDefinition(
        "name_conversion-i2f",
        "name_conversion",
        IUPAC,
        (
            "Work out the molecular formula of <INPUT>.",
            "Which molecular formula belongs to the name <INPUT>?",
            "Write the formula for <INPUT>.",
        ),
        ("<OUTPUT>", "The formula is <OUTPUT>."),
        "formula",
        "registered",
    ),
    TaskDefinition(
        "name_conversion-i2s",
        "name_conversion",
        IUPAC,
        (
            "Write <INPUT> as SMILES.",
            "What SMILES string stands for <INPUT>?",
            "Turn the name <INPUT> into a structure.",
        ),
        ("<OUTPUT>", "In SMILES: <OUTPUT>"),
        "smiles",
        "registered",
    ),
    TaskDefinition(
        "name_conversion-s2f",
        "name_conversion",
        SMILES,
        (
            "Count the atoms of <INPUT> and give its formula.",
            "Which molecular formula has <INPUT>?",
            "Write the formula for <INPUT>.",
        ),
        ("<OUTPUT>", "The formula is <OUTPUT>."),
        "formula",
        "rule",
    ),
    TaskDefinition(
        "name_conversion-s2i",
        "name_conversion",
        SMILES,
        (
            "Name <INPUT> systematically.",
            "What is the systematic name of <INPUT>?",
            "Turn the structure <INPUT> into a name.",
        ),
        ("<OUTPUT>", "It is called <OUTPUT>."),
        "name",
        "registered",
    ),
)

_PROPERTIES = (
    TaskDefinition(
        "property_prediction-esol",
        "property_prediction",
        SMILES,
        (
            "Estimate the log10 solubility in water (mol/L) of <INPUT>.",
            "How well does <INPUT> dissolve in water, as log mol/L?",
        ),
        ("<OUTPUT>", "About <OUTPUT>."),
        "number",
        "measured",
    ),
    TaskDefinition(
        "property_prediction-logp",
        "property_prediction",
        SMILES,
        ("Estimate the octanol-water partition coefficient (log P) of <INPUT>.", "What log P has <INPUT>?"),
        ("<OUTPUT>", "About <OUTPUT>."),
        "number",
        "measured",
    ),
    TaskDefinition(
        "property_prediction-mp",
        "property_prediction",
        SMILES,
        ("At how many degrees Celsius does <INPUT> melt?", "Estimate the melting point (deg C) of <INPUT>."),
        ("<OUTPUT>", "Near <OUTPUT>."),
        "number",
        "measured",
    ),
    TaskDefinition(
        "property_prediction-bp",
        "property_prediction",
        SMILES,
        ("At how many degrees Celsius does <INPUT> boil?", "Estimate the boiling point (deg C) of <INPUT>."),
        ("<OUTPUT>", "Near <OUTPUT>."),
        "number",
        "measured",
    ),
    TaskDefinition(
        "property_prediction-liquid",
        "property_prediction",
        SMILES,
        ("Is <INPUT> a liquid at 25 deg C?", "At room temperature, would <INPUT> be liquid?"),
        ("<OUTPUT>",),
        "boolean",
        "measured",
    ),
    TaskDefinition(
        "property_prediction-carc",
        "property_prediction",
        SMILES,
        (
            "Do the IARC monographs place <INPUT> in group 1, 2A or 2B?",
            "Is <INPUT> classed by IARC as at least possibly carcinogenic to humans?",
        ),
        ("<OUTPUT>",),
        "boolean",
        "registered",
    ),
)

_DESCRIPTIONS = (
    TaskDefinition(
        "molecule_captioning",
        "molecule_description",
        SMILES,
        ("Describe <INPUT>.", "What can be said about the structure of <INPUT>?"),
        ("<OUTPUT>",),
        "text",
        "rule",
    ),
    TaskDefinition(
        "molecule_generation",
        "molecule_description",
        UNTAGGED,
        ("Propose a molecule that fits this description: <INPUT>", "Write a structure for the following. <INPUT>"),
        ("<OUTPUT>", "One that fits: <OUTPUT>"),
        "smiles",
        "rule",
    ),
)

_REACTIONS = (
    TaskDefinition(
        "forward_synthesis",
        "chemical_reaction",
        SMILES,
        ("Predict the product of <INPUT>.", "What forms when these are brought together: <INPUT>?"),
        ("<OUTPUT>", "It gives <OUTPUT>."),
        "smiles",
        "rule",
    ),
    TaskDefinition(
        "retrosynthesis",
        "chemical_reaction",
        SMILES,
        ("Suggest starting materials for <INPUT>.", "From what could <INPUT> be made in one step?"),
        ("<OUTPUT>", "From <OUTPUT>."),
        "smiles",
        "rule",
    ),
)

CHEMISTRY_TASKS = (*_NAMES, *_PROPERTIES, *_DESCRIPTIONS, *_REACTIONS)
