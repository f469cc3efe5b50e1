"""Units other than a signal's own that a hospital may write, and how they become it.

Design note: a factor belongs to a signal, not to a pair of units: mmol/L of glucose and of urea differ. All units are
UCUM, case-sensitive form. What is not here is quarantined, never guessed.
Sources: molar masses from IUPAC standard atomic weights 2021 (Pure Appl Chem 2022, 94:573); 1 mm[Hg] = 133.322387 Pa,
1 cm[H2O] = 98.0665 Pa, [lb_av] = 0.45359237 kg, [in_i] = 2.54 cm, Cel = ([degF] - 32) / 1.8 from UCUM 2.1, tables 4-40.
Curly braces annotate and carry no meaning (UCUM §12).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedtwin_shared.signal import SIGNALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """value in the signal's own unit = value · factor + offset."""

    factor: float
    offset: float = 0.0


_SAME = Conversion(factor=1.0)
_MM_HG_PER_KPA = 1000 / 133.322387
_CM_H2O_PER_MBAR = 100 / 98.0665

# Molar masses in g/mol.
_GLUCOSE, _CREATININE, _BILIRUBIN, _CHOLESTEROL, _LACTIC_ACID = 180.156, 113.120, 584.673, 386.664, 90.078
_UREA_NITROGEN, _MAGNESIUM = 28.014, 24.305  # two atoms of nitrogen in a molecule of urea


def _mg_per_dl(molar_mass: float, *, micro: bool = False) -> Conversion:
    """From mmol/L (or umol/L) to mg/dL."""
    return Conversion(factor=molar_mass / 10 * (1e-3 if micro else 1.0))


_PRESSURES = tuple(key for key, signal in SIGNALS.items() if signal.unit == "mm[Hg]")
_AIRWAY = tuple(key for key, signal in SIGNALS.items() if signal.unit == "cm[H2O]")
_PERCENT = tuple(key for key, signal in SIGNALS.items() if signal.unit == "%")
_CELLS = tuple(key for key, signal in SIGNALS.items() if signal.unit == "10*3/uL")

_FOREIGN: Mapping[tuple[str, str], Conversion] = {
    ("temperature", "[degF]"): Conversion(factor=1 / 1.8, offset=-32 / 1.8),
    ("temperature", "K"): Conversion(factor=1.0, offset=-273.15),
    ("weight", "g"): Conversion(factor=1e-3),
    ("weight", "[lb_av]"): Conversion(factor=0.45359237),
    ("height", "m"): Conversion(factor=100.0),
    ("height", "[in_i]"): Conversion(factor=2.54),
    ("glucose", "mmol/L"): _mg_per_dl(_GLUCOSE),
    ("creatinine", "umol/L"): _mg_per_dl(_CREATININE, micro=True),
    ("bilirubin", "umol/L"): _mg_per_dl(_BILIRUBIN, micro=True),
    ("cholesterol", "mmol/L"): _mg_per_dl(_CHOLESTEROL),
    ("urea_nitrogen", "mmol/L"): _mg_per_dl(_UREA_NITROGEN),  # mmol/L of urea
    ("magnesium", "mmol/L"): _mg_per_dl(_MAGNESIUM),
    ("lactate", "mg/dL"): Conversion(factor=10 / _LACTIC_ACID),
    ("albumin", "g/L"): Conversion(factor=0.1),
    ("troponin_i", "ng/L"): Conversion(factor=1e-3),
    ("troponin_i", "pg/mL"): Conversion(factor=1e-3),
    ("troponin_t", "ng/L"): Conversion(factor=1e-3),
    ("troponin_t", "pg/mL"): Conversion(factor=1e-3),
    ("sodium", "meq/L"): _SAME,
    ("potassium", "meq/L"): _SAME,
    ("bicarbonate", "meq/L"): _SAME,
    ("heart_rate", "{beats}/min"): _SAME,
    ("respiratory_rate", "{breaths}/min"): _SAME,
    **{(key, "kPa"): Conversion(factor=_MM_HG_PER_KPA) for key in _PRESSURES},
    **{(key, "mbar"): Conversion(factor=_CM_H2O_PER_MBAR) for key in _AIRWAY},
    **{(key, "1"): Conversion(factor=100.0) for key in _PERCENT},
    **{(key, "10*9/L"): _SAME for key in _CELLS},
}

CONVERSIONS: Mapping[tuple[str, str], Conversion] = MappingProxyType(
    {**_FOREIGN, **{(key, signal.unit): _SAME for key, signal in SIGNALS.items()}}
)


def find_conversion(signal: str, unit: str) -> Conversion | None:
    """Return how a value of `signal` in `unit` becomes one in the signal's own unit; None: it is not known.

    >>> find_conversion("heart_rate", "/min")
    Conversion(factor=1.0, offset=0.0)
    >>> find_conversion("heart_rate", "bpm") is None
    True
    """
    return CONVERSIONS.get((signal, unit))
