"""Everything the store holds of one patient, as a FHIR R4 Bundle that they can take with them (right of access).

A `collection` of one Patient, with the hospital's id as identifier, and an Observation for each row: LOINC code, UCUM
quantity, instant, device and the device's own number of it; then, as a DocumentReference each, what was set aside and
what was kept besides, in the words in which it was kept. Written entry by entry, so a long stay needs no memory.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import NO_SEQUENCE, ObservationBatch, Quality
from fedtwin_client.store.store import Entry, EntryKind, ObservationStore, StoreError
from fedtwin_shared.signal import SIGNALS

LOINC: Final = "http://loinc.org"
UCUM: Final = "http://unitsofmeasure.org"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def export_patient(store: ObservationStore, patient: str, path: Path, *, now: datetime) -> int:
    """Write the bundle to a new file that only its owner can read; return the number of observations.

    Raises `StoreError`, also when the file exists.
    """
    batch = store.read(patient)
    entries = [entry for kind in EntryKind for entry in store.entries(kind, patient)] if patient else []
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(render_bundle(batch, entries, patient, now=now))
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise StoreError(file=path, expected="a new file that can be written", found=err.strerror or "none") from err
    return len(batch)


def render_bundle(batch: ObservationBatch, entries: Iterable[Entry], patient: str, *, now: datetime) -> Iterator[str]:
    """Yield the text of the bundle in pieces; `batch` and `entries` are of that patient alone."""
    url = _new_url()
    start = {"resourceType": "Bundle", "type": "collection", "timestamp": _instant(now)}
    yield json.dumps(start)[:-1] + ', "entry": [\n'
    yield json.dumps({"fullUrl": url, "resource": {"resourceType": "Patient", "identifier": [{"value": patient}]}})
    for row in range(len(batch)):
        yield ",\n" + json.dumps({"fullUrl": _new_url(), "resource": _observation(batch, row, url)})
    for entry in entries:
        yield ",\n" + json.dumps({"fullUrl": _new_url(), "resource": _document(entry, url)})
    yield "\n]}\n"


_WHAT: Final = {EntryKind.ASIDE: "readings that were set aside, with their reasons", EntryKind.RECORD: "a record"}


def _document(entry: Entry, subject: str) -> dict[str, object]:
    attachment = {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(entry.content).decode()}
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "type": {"text": _WHAT[entry.kind]},
        "subject": {"reference": subject},
        "date": _instant(_EPOCH + timedelta(milliseconds=entry.time)),
        "content": [{"attachment": attachment}],
    }


def _observation(batch: ObservationBatch, row: int, subject: str) -> dict[str, object]:
    signal = SIGNALS[SIGNAL_KEYS[batch.signal[row]]]
    device, sequence = batch.devices[batch.device[row]], int(batch.sequence[row])
    code: dict[str, object] = {"text": signal.name}
    if signal.loinc is not None:
        code["coding"] = [{"system": LOINC, "code": signal.loinc, "display": signal.name}]
    value = float(str(batch.value[row]))  # the shortest decimal that is this 32-bit number: 7.38, not 7.38000011
    resource: dict[str, object] = {
        "resourceType": "Observation",
        "status": "final",
        "code": code,
        "subject": {"reference": subject},
        "effectiveDateTime": _instant(_EPOCH + timedelta(milliseconds=int(batch.time[row]))),
        "valueQuantity": {"value": value, "unit": signal.unit, "system": UCUM, "code": signal.unit},
        "device": {"identifier": {"value": device}},
    }
    if sequence != NO_SEQUENCE:
        resource["identifier"] = [{"value": f"{device}#{sequence}"}]
    if (quality := Quality(int(batch.quality[row]))) is not Quality.VALID:
        resource["note"] = [{"text": f"the device calls this value {quality.name.lower()}"}]
    return resource


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _new_url() -> str:
    return f"urn:uuid:{uuid.uuid4()}"
