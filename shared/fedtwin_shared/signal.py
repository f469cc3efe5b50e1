"""Every measurable channel: a row each, with its code, unit, plausible range and public normalisation constants.

Design note: normalisation uses the constants of this table and nothing else, so it costs no privacy and means the same
in every hospital (per-hospital normalisation erases the signal between hospitals: 0.10 accuracy on the heart study).
`mean` and `sd` are round numbers for adults in acute care, taken from the publications that `SOURCES` names; they were
not computed from any hospital's patients. They need not be exact: a wrong constant only rescales an input.
No row, no reading: an observation whose key or unit is not here is quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

Scale = Literal["linear", "log"]

CLIP = 4.0  # standard deviations; a public bound on every normalised value

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "apache": "reference points of APACHE III and IV: Knaus 1991, Chest 100:1619; Zimmerman 2006, CCM 34:1297",
        "exercise": "exercise test referrals: Gibbons 2002, ACC/AHA exercise testing guideline, Circulation 106:1883",
        "kratz": "adult reference interval, Kratz 2004, N Engl J Med 351:1548; centre and spread moved to acute care",
        "mimic": "normal values of Harutyunyan 2019, Sci Data 6:96 (MIMIC-III); spread by clinical judgement",
        "nhanes": "adults of middle age, United States: Carroll 2005, JAMA 294:1773; Wright 2011, NHSR 35",
        "ventilation": "usual adult settings, ARDS Network 2000, N Engl J Med 342:1301; spread by clinical judgement",
        "none": "LOINC has no term for a yes/no flag of ventilation; constants leave 0 and 1 as they are",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One measurable channel.

    - loinc: LOINC code; None only where LOINC has no term for what the number says.
    - unit: UCUM, case-sensitive form; every value of this signal is in it.
    - low, high: plausible range in `unit`, both included; a value outside is quarantined, not clipped.
    - mean, sd: typical of adults in acute care, of the value (scale "linear") or of its natural logarithm ("log").
    - period: usual time between observations on a ward that watches the patient; None for a fact that does not change.
    - source: where mean and sd come from.
    """

    key: str
    name: str
    loinc: str | None
    unit: str
    low: float
    high: float
    mean: float
    sd: float
    scale: Scale
    period: timedelta | None
    source: str

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"{self.key}: expected low < high, found {self.low}, {self.high}")
        if not self.sd > 0:
            raise ValueError(f"{self.key}: expected sd > 0, found {self.sd}")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(f"{self.key}: expected low > 0 on a log scale, found {self.low}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One fact with a public list of levels.

    - code: `loinc:…` or `sct:…` (SNOMED CT), or `own:…` where neither has a term for this question.
    - levels: every admissible value, in the order of the one-hot columns; an unknown value is all zeros.
    """

    key: str
    name: str
    code: str
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"{self.key}: expected different levels, found {self.levels}")


def normalise(signal: Signal, value: npt.ArrayLike, *, limit: float = CLIP) -> npt.NDArray[np.float64]:
    """Return z-scores by the signal's public constants, clipped to ±limit; any shape in, the same shape out.

    Guarantees:
      - every result lies in [-limit, limit], or is NaN exactly where the value is NaN
      - a value outside the plausible range counts as the nearer end of it
      - no patient's value changes another's result

    >>> float(normalise(SIGNALS["heart_rate"], 106.0))
    1.0
    """
    if not limit > 0:
        raise ValueError(f"expected limit > 0, found {limit}")
    plausible = np.clip(np.asarray(value, dtype=np.float64), signal.low, signal.high)
    scaled = np.log(plausible) if signal.scale == "log" else plausible
    return np.asarray(np.clip((scaled - signal.mean) / signal.sd, -limit, limit))


def _row(
    key: str,
    name: str,
    loinc: str | None,
    unit: str,
    plausible: tuple[float, float],
    mean: float,
    sd: float,
    scale: Scale,
    hours: float | None,
    source: str,
) -> Signal:
    """Shorten the table below: typical values are written as measured, logarithms are taken here."""
    return Signal(
        key=key,
        name=name,
        loinc=loinc,
        unit=unit,
        low=plausible[0],
        high=plausible[1],
        mean=round(float(np.log(mean)), 4) if scale == "log" else mean,
        sd=sd,
        scale=scale,
        period=None if hours is None else timedelta(hours=hours),
        source=SOURCES[source],
    )


# On a log scale `mean` is written as the typical value itself and `sd` in units of ln: 0.7 is a factor of two.
_ROWS = (
    # Facts
    _row("age", "Age", "30525-0", "a", (0, 120), 62, 17, "linear", None, "apache"),
    _row("height", "Body height", "8302-2", "cm", (100, 230), 170, 11, "linear", None, "mimic"),
    _row("weight", "Body weight", "29463-7", "kg", (25, 350), 81, 22, "linear", 24, "mimic"),
    # Vital signs
    _row("heart_rate", "Heart rate", "8867-4", "/min", (10, 300), 86, 20, "linear", 1, "mimic"),
    _row("respiratory_rate", "Respiratory rate", "9279-1", "/min", (2, 80), 19, 6, "linear", 1, "mimic"),
    _row("temperature", "Body temperature", "8310-5", "Cel", (25, 44), 36.8, 0.9, "linear", 4, "mimic"),
    _row("pulse_oximetry", "Oxygen saturation, pulse", "59408-5", "%", (30, 100), 97, 3, "linear", 1, "mimic"),
    _row("systolic_pressure", "Systolic blood pressure", "8480-6", "mm[Hg]", (30, 300), 130, 20, "linear", 4, "nhanes"),
    _row("mean_pressure", "Mean blood pressure", "8478-0", "mm[Hg]", (15, 250), 77, 20, "linear", 1, "mimic"),
    _row("cuff_systolic", "Systolic, cuff", "76534-7", "mm[Hg]", (30, 300), 118, 22, "linear", 1, "mimic"),
    _row("cuff_diastolic", "Diastolic, cuff", "76535-4", "mm[Hg]", (10, 220), 59, 14, "linear", 1, "mimic"),
    _row("cuff_mean", "Mean, cuff", "76536-2", "mm[Hg]", (15, 250), 77, 15, "linear", 1, "mimic"),
    _row("arterial_systolic", "Systolic, arterial line", "76215-3", "mm[Hg]", (30, 300), 118, 22, "linear", 1, "mimic"),
    _row(
        "arterial_diastolic", "Diastolic, arterial line", "76213-8", "mm[Hg]", (10, 220), 59, 12, "linear", 1, "mimic"
    ),
    _row("arterial_mean", "Mean, arterial line", "76214-6", "mm[Hg]", (15, 250), 77, 14, "linear", 1, "mimic"),
    _row("urine_output", "Urine since the last entry", "9187-6", "mL", (0, 4000), 110, 110, "linear", 1, "apache"),
    _row("urine_day", "Urine output in 24 h", "9192-6", "mL/(24.h)", (0, 20000), 1900, 1200, "linear", 24, "apache"),
    _row("glasgow", "Glasgow coma score", "9269-2", "{score}", (3, 15), 13, 3.5, "linear", 4, "apache"),
    _row("glasgow_eyes", "Glasgow coma score, eyes", "9267-6", "{score}", (1, 4), 3.5, 0.9, "linear", 4, "apache"),
    _row("glasgow_verbal", "Glasgow coma score, verbal", "9270-0", "{score}", (1, 5), 4, 1.5, "linear", 4, "apache"),
    _row("glasgow_motor", "Glasgow coma score, motor", "9268-4", "{score}", (1, 6), 5.5, 1.2, "linear", 4, "apache"),
    _row("apache_three", "APACHE III score", "9265-0", "{score}", (0, 299), 50, 25, "linear", None, "apache"),
    # Breathing support
    _row("inspired_oxygen", "Inspired oxygen", "3150-0", "%", (21, 100), 45, 20, "linear", 4, "ventilation"),
    _row("oxygen_flow", "Inspired oxygen flow", "3151-8", "L/min", (0, 80), 3, 3, "linear", 4, "ventilation"),
    _row("end_expiratory", "PEEP set", "20077-4", "cm[H2O]", (0, 40), 6, 3, "linear", 4, "ventilation"),
    _row("breaths_set", "Breath rate set", "19834-1", "/min", (0, 60), 15, 4, "linear", 4, "ventilation"),
    _row("tidal_volume_set", "Tidal volume set", "20112-9", "mL", (50, 1500), 480, 80, "linear", 4, "ventilation"),
    _row("airway_mean", "Mean airway pressure", "76530-5", "cm[H2O]", (1, 60), 10, 4, "linear", 4, "ventilation"),
    _row("airway_peak", "Inspiratory pressure", "76003-3", "cm[H2O]", (1, 100), 22, 7, "linear", 4, "ventilation"),
    _row("ventilated", "Mechanical ventilation in use", None, "1", (0, 1), 0, 1, "linear", 1, "none"),
    # Blood gases
    _row("arterial_ph", "Arterial pH", "2744-1", "[pH]", (6.5, 8.0), 7.38, 0.08, "linear", 6, "kratz"),
    _row("arterial_carbon_dioxide", "Arterial pCO2", "2019-8", "mm[Hg]", (8, 200), 40, 0.25, "log", 6, "kratz"),
    _row("arterial_oxygen", "Arterial pO2", "2703-7", "mm[Hg]", (15, 700), 115, 0.5, "log", 6, "kratz"),
    _row("arterial_saturation", "Arterial oxygen saturation", "2708-6", "%", (30, 100), 97, 3, "linear", 6, "mimic"),
    _row("lactate", "Lactate", "2524-7", "mmol/L", (0.1, 40), 1.9, 0.6, "log", 8, "kratz"),
    # Laboratory
    _row("white_cells", "Leukocytes", "6690-2", "10*3/uL", (0.05, 500), 11, 0.5, "log", 24, "kratz"),
    _row("platelets", "Platelets", "777-3", "10*3/uL", (1, 2000), 190, 0.55, "log", 24, "kratz"),
    _row("hematocrit", "Hematocrit", "4544-3", "%", (5, 75), 33, 6, "linear", 24, "kratz"),
    _row("sodium", "Sodium", "2951-2", "mmol/L", (95, 200), 139, 5, "linear", 24, "kratz"),
    _row("potassium", "Potassium", "2823-3", "mmol/L", (1.2, 12), 4.1, 0.6, "linear", 24, "kratz"),
    _row("bicarbonate", "Bicarbonate", "1963-8", "mmol/L", (2, 60), 24, 5, "linear", 24, "kratz"),
    _row("magnesium", "Magnesium", "19123-9", "mg/dL", (0.3, 12), 2.0, 0.4, "linear", 24, "kratz"),
    _row("urea_nitrogen", "Urea nitrogen", "3094-0", "mg/dL", (1, 300), 21, 0.7, "log", 24, "kratz"),
    _row("creatinine", "Creatinine", "2160-0", "mg/dL", (0.1, 30), 1.1, 0.6, "log", 24, "kratz"),
    _row("glucose", "Glucose", "2345-7", "mg/dL", (10, 2000), 128, 0.4, "log", 12, "mimic"),
    _row("albumin", "Albumin", "1751-7", "g/dL", (0.5, 7), 3.0, 0.7, "linear", 24, "kratz"),
    _row("bilirubin", "Bilirubin, total", "1975-2", "mg/dL", (0.05, 70), 0.9, 0.9, "log", 24, "kratz"),
    _row("alkaline_phosphatase", "Alkaline phosphatase", "6768-6", "U/L", (5, 5000), 85, 0.6, "log", 24, "kratz"),
    _row("alanine_transferase", "ALT", "1742-6", "U/L", (1, 30000), 40, 1.3, "log", 24, "kratz"),
    _row("aspartate_transferase", "AST", "1920-8", "U/L", (1, 40000), 50, 1.3, "log", 24, "kratz"),
    _row("troponin_i", "Troponin I", "10839-9", "ng/mL", (0.001, 500), 1, 2, "log", 12, "kratz"),
    _row("troponin_t", "Troponin T", "6598-7", "ng/mL", (0.001, 100), 0.2, 1.5, "log", 12, "kratz"),
    _row("cholesterol", "Cholesterol, total", "2093-3", "mg/dL", (20, 700), 230, 45, "linear", None, "nhanes"),
    # Exercise electrocardiogram
    _row("peak_heart_rate", "Highest heart rate", "55422-0", "/min", (40, 230), 150, 22, "linear", None, "exercise"),
    _row("st_depression", "Largest ST depression", "91546-2", "mV", (-1, 1), 0.1, 0.1, "linear", None, "exercise"),
    # Continuous sensors; a new row goes last, because stored observations hold a signal's number
    _row(
        "interstitial_glucose", "Glucose, interstitial", "99504-3", "mg/dL", (10, 600), 128, 0.4, "log", 0.25, "mimic"
    ),
)

SIGNALS: Mapping[str, Signal] = MappingProxyType({row.key: row for row in _ROWS})

_CHARTED = ("yes",)  # nobody charts a "no": absence is unknown


def _category(key: str, name: str, code: str, levels: tuple[str, ...]) -> Category:
    """Shorten the table below."""
    return Category(key=key, name=name, code=code, levels=levels)


_CATEGORIES = (
    _category("sex", "Sex", "loinc:46098-0", ("female", "male")),
    _category("chest_pain", "Chest pain", "sct:29857009", ("typical_angina", "atypical_angina", "not_angina", "none")),
    _category("fasting_glucose", "Fasting glucose, mg/dL", "loinc:1558-6", ("up_to_120", "above_120")),
    _category(
        "resting_ecg",
        "Resting electrocardiogram",
        "loinc:8601-7",
        ("normal", "st_t_abnormality", "ventricular_hypertrophy"),
    ),
    _category("exercise_angina", "Angina during exercise", "sct:300995000", ("no", "yes")),
    # Admission to intensive care
    _category(
        "admission_diagnosis",
        "Main diagnosis at admission to the unit",
        "loinc:46241-6",
        (
            *("cardiac_arrest", "sepsis", "intracranial_bleeding", "stroke", "coma", "pneumonia", "heart_failure"),
            *("heart_ischaemia", "heart_rhythm", "diabetic_crisis", "overdose_or_withdrawal", "digestive_bleeding"),
            *("respiratory", "trauma", "other_medical", "heart_surgery", "other_surgery"),
        ),
    ),
    _category(
        "unit_source",
        "Where the patient came from",
        "own:unit_source",
        ("operating_room", "emergency", "ward", "other_unit", "direct"),
    ),
    _category(
        "days_before_unit",
        "Days in hospital before the unit",
        "own:days_before_unit",
        ("same_day", "next_day", "within_week", "later"),
    ),
    _category(
        "care_limit",
        "Limits of care that were agreed",
        "own:care_limit",
        ("full_therapy", "other_limit", "no_resuscitation", "comfort_only"),
    ),
    # Known only where somebody charted it
    _category("elective_surgery", "After elective surgery", "own:elective_surgery", _CHARTED),
    _category("glasgow_sedated", "Coma score not scorable, sedated", "own:glasgow_sedated", _CHARTED),
    _category("metastatic_cancer", "Metastatic cancer", "sct:128462008", _CHARTED),
    _category("blood_cancer", "Leukaemia or lymphoma", "own:blood_cancer", _CHARTED),
    _category("liver_failure", "Cirrhosis or liver failure", "own:liver_failure", _CHARTED),
    _category("immunosuppression", "Immunosuppression", "sct:38013005", _CHARTED),
    _category("diabetes", "Diabetes", "sct:73211009", _CHARTED),
    _category("invasive_ventilation", "Ventilated through a tube", "sct:40617009", _CHARTED),
    _category("mechanical_ventilation", "Mechanical ventilation charted", "own:mechanical_ventilation", _CHARTED),
    _category("mask_ventilation", "Ventilated through a mask", "sct:428311008", _CHARTED),
    _category("vasopressor", "Vasopressor or inotrope", "own:vasopressor", _CHARTED),
    _category("renal_replacement", "Renal replacement", "sct:265764009", _CHARTED),
    _category("blood_products", "Blood products", "own:blood_products", _CHARTED),
    _category("sedation", "Sedation", "own:sedation", _CHARTED),
    _category("bicarbonate_given", "Bicarbonate given", "own:bicarbonate_given", _CHARTED),
    _category("antibacterials", "Therapeutic antibacterials", "own:antibacterials", _CHARTED),
    _category("shock", "Shock or hypotension", "sct:27942005", _CHARTED),
    _category("respiratory_failure", "Respiratory failure", "sct:409622000", _CHARTED),
    _category("kidney_injury", "Kidney injury", "own:kidney_injury", _CHARTED),
    _category("mental_change", "Change of mental status", "sct:419284004", _CHARTED),
    _category("cardiac_arrest_charted", "Cardiac arrest", "sct:410429000", _CHARTED),
    _category("sepsis_charted", "Sepsis", "sct:91302008", _CHARTED),
    _category("acidosis", "Acidosis", "sct:51387008", _CHARTED),
    _category("cancer", "Cancer", "sct:363346000", _CHARTED),
    _category("coagulation_disorder", "Coagulation disorder", "own:coagulation_disorder", _CHARTED),
    _category("hepatic_disease", "Liver disease", "own:hepatic_disease", _CHARTED),
    _category("pneumonia_charted", "Pneumonia", "sct:233604007", _CHARTED),
    _category("stroke_charted", "Stroke or intracranial bleeding", "own:stroke_charted", _CHARTED),
)

CATEGORIES: Mapping[str, Category] = MappingProxyType({row.key: row for row in _CATEGORIES})
