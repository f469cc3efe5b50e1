"""Facts of an eICU stay: the day's worst APACHE values, the admission, and what was charted by the end of a day.

The patterns are regular expressions over eICU's own strings, lower case, `|` between the levels of its paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedtwin_simulations.datasets.apache_score import score_apache_three
from fedtwin_simulations.datasets.hospital_files import find

_MISSING = -1
_YES = "yes"

# Worst value of the first day, table apacheApsVar.
WORST_OF_DAY: Mapping[str, str] = {
    "urine": "urine_day",
    "wbc": "white_cells",
    "temperature": "temperature",
    "respiratoryrate": "respiratory_rate",
    "sodium": "sodium",
    "heartrate": "heart_rate",
    "meanbp": "mean_pressure",
    "ph": "arterial_ph",
    "hematocrit": "hematocrit",
    "creatinine": "creatinine",
    "albumin": "albumin",
    "pao2": "arterial_oxygen",
    "pco2": "arterial_carbon_dioxide",
    "bun": "urea_nitrogen",
    "glucose": "glucose",
    "bilirubin": "bilirubin",
    "fio2": "inspired_oxygen",
    "eyes": "glasgow_eyes",
    "verbal": "glasgow_verbal",
    "motor": "glasgow_motor",
}

# Yes/no of the first day: category -> columns of apacheApsVar and apachePredVar, any of which being 1 means yes.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "invasive_ventilation": ("intubated", "vent", "ventday1", "oobintubday1"),
    "glasgow_sedated": ("meds",),
    "metastatic_cancer": ("metastaticcancer",),
    "blood_cancer": ("lymphoma", "leukemia"),
    "liver_failure": ("hepaticfailure", "cirrhosis"),
    "immunosuppression": ("immunosuppression",),
    "diabetes": ("diabetes",),
    "elective_surgery": ("electivesurgery",),
}

# The first pattern that matches names the level; what nothing matches is "other_medical", or "other_surgery" after one.
ADMISSION_DIAGNOSES: Mapping[str, str] = {
    "cardiac_arrest": "^cardiac arrest",
    "sepsis": "^sepsis",
    "intracranial_bleeding": "intracranial|subarachnoid|subdural",
    "stroke": "^cva",
    "coma": "^coma|encephalopath",
    "pneumonia": "^pneumonia|^ards",
    "heart_failure": "^chf|^cardiomyopathy|^shock, cardiogenic",
    "heart_ischaemia": "infarction, acute|^angina|^chest pain|^mi admitted",
    "heart_rhythm": "^rhythm",
    "diabetic_crisis": "^diabetic",
    "overdose_or_withdrawal": "overdose|withdrawal",
    "digestive_bleeding": "^bleeding",
    "respiratory": "respiratory|emphysema|asthma|obstruction-airway|embolus|effusions, pleural|restrictive lung",
    "trauma": "trauma",
}
_HEART_SURGERY = "cabg|valve|coronary|thoracic aortic"

UNIT_SOURCES: Mapping[str, str] = {
    "operating_room": "operating room|recovery room|pacu",
    "emergency": "emergency|chest pain center",
    "ward": "floor|step-down",
    "other_unit": "icu",
    "direct": "direct|other hospital",
}

TREATMENTS: Mapping[str, str] = {
    "vasopressor": r"\|vasopressors|\|inotropic agent",
    "mechanical_ventilation": r"\|mechanical ventilation|\|endotracheal tube",
    "mask_ventilation": r"\|non-invasive ventilation",
    "renal_replacement": r"\|dialysis",
    "blood_products": "blood product administration|packed red blood cells",
    "sedation": r"\|sedative",
    "bicarbonate_given": r"\|bicarbonate",
    "antibacterials": "therapeutic antibacterials",
}
_PRESSOR_INFUSION = "norepinephrine|phenylephrine|dopamine|vasopressin|epinephrine|dobutamine|levophed|neosynephrine"

DIAGNOSES: Mapping[str, str] = {
    "shock": r"shock / hypotension",
    "respiratory_failure": r"pulmonary\|respiratory failure",
    "kidney_injury": r"renal\|disorder of kidney",
    "mental_change": "altered mental status",
    "cardiac_arrest_charted": r"cardiovascular\|cardiac arrest",
    "sepsis_charted": "sepsis",
    "acidosis": "disorder of acid base|acidosis",
    "cancer": r"^oncology\|",
    "coagulation_disorder": "coagulation disorders|platelet disorders",
    "hepatic_disease": "hepatic disease",
    "pneumonia_charted": "pneumonia",
    "stroke_charted": "stroke|intracranial|hemorrhagic",
}

# The most limiting of the first day wins.
CARE_LIMITS: Mapping[str, str] = {
    "comfort_only": "comfort measures only|no augmentation",
    "no_resuscitation": "do not resuscitate|no cpr",
    "other_limit": "no intubation|no vasopressors|no cardioversion|no blood|advance directives",
    "full_therapy": "full therapy",
}

_WAITS = {"same_day": 1, "next_day": 2, "within_week": 7, "later": float("inf")}


def admission_facts(source: Path, stays: pd.DataFrame) -> pd.DataFrame:
    """Return the facts of APACHE and of the admission, one row per stay in the order of `stays`."""
    worst = _apache(source, "apacheApsVar.csv.gz", stays)
    predictors = _apache(source, "apachePredVar.csv.gz", stays)
    both = predictors.combine_first(worst)
    facts = pd.DataFrame(
        {
            "age": stays["age"],
            "height": stays["admissionheight"],
            "weight": stays["admissionweight"],
            "sex": stays["gender"].str.lower().where(stays["gender"].isin(["Female", "Male"])),
        }
    ).set_axis(stays["stay"])
    facts = facts.assign(**{key: worst[column] for column, key in WORST_OF_DAY.items()})
    facts["apache_three"] = score_apache_three(worst, predictors, facts["age"])
    for key, columns in FLAGS.items():
        facts[key] = _charted((both[list(columns)] == 1).any(axis=1))
    diagnosis = stays["apacheadmissiondx"].str.lower().set_axis(stays["stay"])
    facts["admission_diagnosis"] = _admission_diagnosis(diagnosis, both["admitdiagnosis"])
    facts["unit_source"] = _first_match(stays["unitadmitsource"].str.lower().set_axis(stays["stay"]), UNIT_SOURCES)
    waited_days = (-stays["hospitaladmitoffset"].set_axis(stays["stay"])).clip(lower=0) / (24 * 60)
    facts["days_before_unit"] = pd.cut(waited_days, [-1.0, *_WAITS.values()], labels=list(_WAITS), right=False)
    return facts


def charted_facts(source: Path, stays: pd.Series, *, until: int) -> pd.DataFrame:
    """Return treatments, diagnoses and limits of care charted before minute `until`, one row per stay in order."""
    treatments = _strings(source, "treatment.csv.gz", "treatmentoffset", "treatmentstring", until)
    diagnoses = _strings(source, "diagnosis.csv.gz", "diagnosisoffset", "diagnosisstring", until)
    infusions = _strings(source, "infusiondrug.csv.gz", "infusionoffset", "drugname", until)
    limits = _strings(source, "carePlanGeneral.csv.gz", "cplitemoffset", "cplitemvalue", until)
    facts = pd.DataFrame(index=pd.Index(stays))
    for key, pattern in TREATMENTS.items():
        facts[key] = _charted(facts.index.isin(_matching(treatments, pattern)))
    pressed = facts.index.isin(_matching(infusions, _PRESSOR_INFUSION))
    facts["vasopressor"] = facts["vasopressor"].mask(pressed, _YES)
    for key, pattern in DIAGNOSES.items():
        facts[key] = _charted(facts.index.isin(_matching(diagnoses, pattern)))
    facts["care_limit"] = None
    for level, pattern in reversed(list(CARE_LIMITS.items())):
        facts.loc[facts.index.isin(_matching(limits, pattern)), "care_limit"] = level
    return facts


def _apache(source: Path, name: str, stays: pd.DataFrame) -> pd.DataFrame:
    table = pd.read_csv(find(source, name)).drop_duplicates("patientunitstayid").set_index("patientunitstayid")
    return table.reindex(stays["stay"]).replace(_MISSING, float("nan"))


def _strings(source: Path, name: str, offset: str, text: str, until: int) -> pd.Series:
    """Return stay -> lower-case text of the rows charted before `until`, also those from before the unit."""
    table = pd.read_csv(find(source, name))
    table = table[table[offset] < until]
    return table[text].astype(str).str.lower().set_axis(table["patientunitstayid"])


def _matching(strings: pd.Series, pattern: str) -> pd.Index:
    return strings.index[strings.str.contains(pattern, regex=True)].unique()


def _charted(is_yes: pd.Series) -> pd.Series:
    return pd.Series(is_yes, dtype=bool).map({True: _YES, False: None}).to_numpy()


def _first_match(text: pd.Series, patterns: Mapping[str, str]) -> pd.Series:
    found = pd.Series(None, index=text.index, dtype="object")
    for level, pattern in reversed(list(patterns.items())):
        found[text.str.contains(pattern, regex=True).fillna(False).astype(bool)] = level
    return found


def _admission_diagnosis(diagnosis: pd.Series, code: pd.Series) -> pd.Series:
    surgical = code.astype("string").str.startswith("S-").fillna(False).astype(bool)
    heart = diagnosis.str.contains(_HEART_SURGERY).fillna(False).astype(bool)
    found = _first_match(diagnosis, ADMISSION_DIAGNOSES)
    found[found.isna() & diagnosis.notna()] = "other_medical"
    found[surgical & diagnosis.notna()] = "other_surgery"
    found[surgical & heart] = "heart_surgery"
    return found
