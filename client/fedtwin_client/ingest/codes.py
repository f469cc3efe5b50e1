"""Which signal a code of the outside world means, and how its unit becomes the signal's own.

Design note: a code is LOINC as it is written (`8867-4`), IEEE 11073-10101 behind `mdc:` (`mdc:147842`), or a key of the
Signal table; what is not here is quarantined, never guessed. A term is listed only where it means the same quantity.
Sources: LOINC 2.78; IEEE 11073-10101:2019, context-free codes (partition · 2^16 + term code), partition 2 (metrics) and
partition 4 (units); RFC 8428 §12.1 (SenML units).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.units import find_conversion
from fedtwin_shared.signal import SIGNALS

LOINC_SYSTEMS: Final = frozenset({"http://loinc.org", "LN", "urn:oid:2.16.840.1.113883.6.1"})
MDC_SYSTEMS: Final = frozenset({"urn:iso:std:iso:11073:10101", "MDC", "urn:oid:2.16.840.1.113883.6.24"})
UCUM_SYSTEMS: Final = frozenset({"http://unitsofmeasure.org", "UCUM", "urn:oid:2.16.840.1.113883.6.8"})

# Terms of the same quantity as a signal's own; the method of measurement is not part of what the signal says.
_LOINC: Mapping[str, str] = {
    "8889-8": "heart_rate",  # by pulse oximetry
    "8893-0": "heart_rate",  # peripheral artery by palpation
    "8328-7": "temperature",  # axillary
    "8329-5": "temperature",  # core
    "8331-1": "temperature",  # oral
    "8332-9": "temperature",  # rectal
    "3141-9": "weight",  # measured
    "3137-7": "height",  # measured
}
_MDC: Mapping[str, str] = {
    "147842": "heart_rate",  # MDC_ECG_HEART_RATE
    "149530": "heart_rate",  # MDC_PULS_OXIM_PULS_RATE
    "151562": "respiratory_rate",  # MDC_RESP_RATE
    "150456": "pulse_oximetry",  # MDC_PULS_OXIM_SAT_O2
    "150344": "temperature",  # MDC_TEMP
    "150364": "temperature",  # MDC_TEMP_BODY
    "150021": "cuff_systolic",  # MDC_PRESS_BLD_NONINV_SYS
    "150022": "cuff_diastolic",
    "150023": "cuff_mean",
    "150301": "cuff_systolic",  # MDC_PRESS_CUFF_SYS
    "150302": "cuff_diastolic",
    "150303": "cuff_mean",
    "150033": "arterial_systolic",  # MDC_PRESS_BLD_ART_SYS
    "150034": "arterial_diastolic",
    "150035": "arterial_mean",
    "150037": "arterial_systolic",  # MDC_PRESS_BLD_ART_ABP_SYS
    "150038": "arterial_diastolic",
    "150039": "arterial_mean",
    "188736": "weight",  # MDC_MASS_BODY_ACTUAL
    "188740": "height",  # MDC_LEN_BODY_ACTUAL
}
_MDC_UNITS: Mapping[str, str] = {
    "262656": "1",  # MDC_DIM_DIMLESS
    "262688": "%",
    "263441": "cm",
    "263872": "g",
    "263875": "kg",
    "264864": "/min",  # MDC_DIM_BEAT_PER_MIN
    "264928": "/min",  # MDC_DIM_RESP_PER_MIN
    "265987": "kPa",
    "266016": "mm[Hg]",
    "266048": "cm[H2O]",
    "266560": "[degF]",
    "268192": "Cel",
}
_SENML_UNITS: Mapping[str, str] = {"beat/min": "/min", "/": "1", "%": "%", "Cel": "Cel", "K": "K", "mmHg": "mm[Hg]"}

SIGNAL_OF_CODE: Mapping[str, str] = MappingProxyType(
    {
        **{key: key for key in SIGNAL_KEYS},
        **{signal.loinc: key for key, signal in SIGNALS.items() if signal.loinc is not None},
        **_LOINC,
        **{f"mdc:{code}": key for code, key in _MDC.items()},
    }
)

_ANNOTATION = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """A code and a unit understood: signal is an index in `SIGNAL_KEYS`, -1 unknown; factor NaN: a foreign unit."""

    signal: int
    factor: float
    offset: float


_UNKNOWN = Meaning(signal=-1, factor=float("nan"), offset=0.0)


def qualify_code(system: str, code: str) -> str:
    """Return the code as `SIGNAL_OF_CODE` writes it; empty for a coding system that we do not know.

    >>> qualify_code("MDC", "147842"), qualify_code("http://loinc.org", "8867-4"), qualify_code("L", "HR")
    ('mdc:147842', '8867-4', '')
    """
    if system in LOINC_SYSTEMS:
        return code
    return f"mdc:{code}" if system in MDC_SYSTEMS else ""


def qualify_unit(system: str, unit: str) -> str:
    """Return the UCUM unit; empty for a system of units that we do not know."""
    if system in UCUM_SYSTEMS:
        return unit
    return _MDC_UNITS.get(unit, "") if system in MDC_SYSTEMS else ""


def qualify_senml_unit(unit: str) -> str:
    """Return the UCUM unit of a SenML one; one that SenML does not register is UCUM already."""
    return _SENML_UNITS.get(unit, unit)


def find_meaning(code: str, unit: str) -> Meaning:
    """Return what a qualified code and a UCUM unit mean; a longer text than any of them is not remembered.

    - annotations in curly braces carry no meaning (UCUM §12)

    >>> find_meaning("8867-4", "{beat}/min").factor
    1.0
    """
    return _recall(code, unit) if len(code) + len(unit) <= _LONGEST else _find(code, unit)


_LONGEST: Final = 128


def _find(code: str, unit: str) -> Meaning:
    key = SIGNAL_OF_CODE.get(code)
    if key is None:
        return _UNKNOWN
    conversion = find_conversion(key, unit) or find_conversion(key, _ANNOTATION.sub("", unit) or "1")
    if conversion is None:
        return Meaning(signal=SIGNAL_KEYS.index(key), factor=float("nan"), offset=0.0)
    return Meaning(signal=SIGNAL_KEYS.index(key), factor=conversion.factor, offset=conversion.offset)


_recall: Final = lru_cache(maxsize=4096)(_find)
