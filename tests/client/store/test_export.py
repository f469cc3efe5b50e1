"""An export is a FHIR R4 Bundle that a foreign validator reads, with everything the store holds of the patient."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fhir.resources.R4B.bundle import Bundle

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.store.block_store import open_store
from fedtwin_client.store.export import export_patient
from fedtwin_client.store.store import EntryKind, StoreError
from fedtwin_shared.signal import SIGNALS
from tests.contracts.store_contract import START, Row, batch_of, entry, stay

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_every_signal_is_exported_as_a_valid_observation(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("Ada", key, START + at * 1001, round(SIGNALS[key].low + 0.38, 2), "monitor-1", at - 1, at % 3)
        for at, key in enumerate(SIGNAL_KEYS)
    ]
    with open_store(tmp_path / "store") as store:
        store.append(batch_of([*rows, *stay("Bo", count=3)]))
        assert export_patient(store, "Ada", tmp_path / "ada.json", now=NOW) == len(rows)
    text = (tmp_path / "ada.json").read_text(encoding="utf-8")
    bundle = Bundle.model_validate_json(text)
    document = json.loads(text)
    patient, *entries = document["entry"]
    assert patient["resource"]["identifier"] == [{"value": "Ada"}]
    assert '"Bo"' not in text
    assert len(bundle.entry or ()) == 1 + len(rows)
    assert len({entry["fullUrl"] for entry in document["entry"]}) == 1 + len(rows)
    found = {entry["resource"]["code"]["text"]: entry["resource"] for entry in entries}
    for _, key, time, value, device, sequence, quality in rows:
        signal, resource = SIGNALS[key], found[SIGNALS[key].name]
        codes = [coding["code"] for coding in resource["code"].get("coding", [])]
        assert codes == [signal.loinc] * (signal.loinc is not None)
        assert resource["subject"]["reference"] == patient["fullUrl"]
        assert resource["valueQuantity"]["value"] == value
        assert resource["valueQuantity"]["code"] == signal.unit
        assert round(datetime.fromisoformat(resource["effectiveDateTime"]).timestamp() * 1000) == time
        assert resource["device"]["identifier"]["value"] == device
        assert ("identifier" in resource) == (sequence >= 0)
        assert ("note" in resource) == (quality > 0)


def test_what_was_set_aside_and_what_was_kept_besides_is_exported_too(tmp_path: Path) -> None:
    kept = [entry("Ada", b"[1]"), entry("Bo", b"not hers"), entry("Ada", "ä".encode(), kind=EntryKind.RECORD)]
    with open_store(tmp_path / "store") as store:
        store.append(batch_of(stay("Ada", count=1)), kept)
        assert export_patient(store, "Ada", tmp_path / "ada.json", now=NOW) == 1
    text = (tmp_path / "ada.json").read_text(encoding="utf-8")
    Bundle.model_validate_json(text)
    patient, _, *documents = json.loads(text)["entry"]
    assert [base64.b64decode(one["resource"]["content"][0]["attachment"]["data"]) for one in documents] == [
        b"[1]",
        "ä".encode(),
    ]
    assert {one["resource"]["subject"]["reference"] for one in documents} == {patient["fullUrl"]}


def test_an_export_is_its_owners_alone_and_never_over_another_file(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        assert export_patient(store, "nobody", tmp_path / "out.json", now=NOW) == 0
        assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o600
        Bundle.model_validate_json((tmp_path / "out.json").read_text(encoding="utf-8"))
        with pytest.raises(StoreError, match="expected a new file"):
            export_patient(store, "nobody", tmp_path / "out.json", now=NOW)
