"""How fast messages become columns, beside the libraries that are the usual choice."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from fedtwin_client.ingest import fhir, hl7v2
from fedtwin_client.ingest.readings import Draft
from fedtwin_simulations.ingest_site import RESULTS, TOGETHER, rate_row
from fedtwin_simulations.results import BenchRow

HL7_GOAL: Final = 100_000
FHIR_GOAL: Final = 300_000


def time_parsers(number: int = 10_000) -> Iterator[BenchRow]:
    """Yield messages (or resources) a second of processor time, best of five."""
    for results in (1, 6):
        messages = [write_result_message(at, results) for at in range(number)]
        ours = number / _best(partial(_read_hl7, messages))
        theirs = _rate_of("hl7", "parse", [message.decode() for message in messages[:500]])
        case = f"HL7 v2 ORU^R01 with {results} OBX, read to columns"
        yield rate_row(
            case, ours, HL7_GOAL, "messages/s", baseline=theirs, named="hl7: parsed to lists" if theirs else ""
        )
    resources = [write_observation(at) for at in range(number)]
    lines = [b"\n".join(resources[at : at + 1000]) for at in range(0, number, 1000)]
    ours = number / _best(lambda: _read_fhir(lines))
    theirs = _validation_rate(resources[:500])
    named = "fhir.resources R4B: validated" if theirs else ""
    yield rate_row(
        "FHIR Observation, NDJSON, read to columns", ours, FHIR_GOAL, "resources/s", baseline=theirs, named=named
    )


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _read_hl7(messages: Sequence[bytes]) -> None:
    for at in range(0, len(messages), TOGETHER):
        draft = Draft()
        for message in messages[at : at + TOGETHER]:
            hl7v2.read_message(message, draft)
        draft.readings()


def _read_fhir(lines: Sequence[bytes]) -> None:
    for some in lines:
        draft = Draft()
        fhir.read_ndjson(some, draft)
        draft.readings()


def _rate_of(module: str, function: str, texts: Sequence[str]) -> float | None:
    """Return how many texts another library reads a second; None where it is not installed."""
    try:
        parse = getattr(importlib.import_module(module), function)
    except ImportError:
        return None
    return len(texts) / _best(lambda: [parse(text) for text in texts], 3)


def _validation_rate(resources: Sequence[bytes]) -> float | None:
    try:
        kind = importlib.import_module("fhir.resources.R4B.observation").Observation
    except ImportError:
        return None
    return len(resources) / _best(lambda: [kind.model_validate_json(one) for one in resources], 3)


def write_result_message(number: int, results: int) -> bytes:
    """Return an ORU^R01 of a bedside monitor with so many OBX, at most six."""
    at = f"2026112212{number // 60 % 60:02d}{number % 60:02d}+0100"
    lines = [
        rf"MSH|^~\&|MONITOR|ICU|NODE|SITE|{at}||ORU^R01^ORU_R01|M{number}|P|2.5.1",
        f"PID|1||p{number % 200}^^^HOSP^MR",
        f"OBR|1|||VITALS|||{at}",
    ]
    for index, (code, value, unit) in enumerate(RESULTS[:results], 1):
        lines.append(f"OBX|{index}|NM|{code}^x^LN||{value}|{unit}^^UCUM|||||F|||{at}")
    return "\r".join(lines).encode()


def write_observation(number: int) -> bytes:
    """Return a vital sign as FHIR writes it."""
    category = {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}
    code = {"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}
    quantity = {"value": 60 + number % 60, "unit": "beats/minute", "code": "/min"}
    return json.dumps(
        {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "category": [{"coding": [category]}],
            "code": {"coding": [code]},
            "subject": {"reference": f"Patient/p{number % 200}"},
            "effectiveDateTime": f"2026-11-22T12:{number // 60 % 60:02d}:{number % 60:02d}+01:00",
            "valueQuantity": {**quantity, "system": "http://unitsofmeasure.org"},
        }
    ).encode()
