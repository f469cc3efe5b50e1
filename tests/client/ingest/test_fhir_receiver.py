"""The FHIR receiver: 200 means kept, everything else says why not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from fedtwin_client.ingest import fhir
from fedtwin_client.ingest.fhir_receiver import make_receiver
from tests.client.ingest.bedside import Kept, make_device, make_gateway
from tests.client.ingest.test_fhir import observation

RECENT = {"effectiveDateTime": "2026-11-22T11:00:00Z"}


def test_what_is_sent_is_kept_or_the_sender_is_told_why_not(tmp_path: Path) -> None:
    kept = Kept()
    feed = make_device("records", b"secret")
    slow = replace(make_device("slow", b"slow"), rate=1e-3, burst=1)
    gateway = make_gateway(tmp_path, kept, feed, slow)
    with ThreadPoolExecutor(1) as executor, TestClient(make_receiver(gateway, executor)) as client:
        known = {"Authorization": "Bearer secret"}
        body = json.dumps(observation(**RECENT))
        assert client.post("/Observation", content=body).status_code == 401
        assert client.post("/Observation", content=body, headers={"Authorization": "Bearer x"}).status_code == 401
        found = client.post("/Observation", content=body, headers=known)
        assert found.status_code == 200
        assert found.json()["issue"][0]["diagnostics"].startswith("accepted 1, set aside 0, known 0")
        again = client.post("/Observation", content=body, headers=known)  # its answer was lost: safe already
        assert again.json()["issue"][0]["diagnostics"].startswith("accepted 0, set aside 0, known 1")
        bundle = {"resourceType": "Bundle", "entry": [{"resource": observation(**RECENT)}] * 3}
        assert client.post("/", json=bundle, headers=known).status_code == 200
        assert client.post("/$import-lines", content=f"{body}\n{body}\n", headers=known).status_code == 200
        patient = {"resourceType": "Patient", "id": "p1"}
        assert client.put("/Patient/p1", json=patient, headers=known).status_code == 200
        assert client.post("/", content="{", headers=known).status_code == 400
        assert client.post("/", content=b" " * (fhir.MAXIMUM_BYTES + 1), headers=known).status_code == 413
        own = {"Authorization": "Bearer slow"}
        assert client.post("/Observation", content=body, headers=own).status_code == 200
        assert client.post("/Observation", content=body, headers=own).status_code == 429
        kept.broken = True
        refused = client.post("/Observation", content=f"{body} ", headers=known)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    assert len(kept.values()) == 7
    assert len(kept.records) == 1
    totals = gateway.totals
    assert totals.accepted + totals.set_aside + totals.duplicate + totals.refused == totals.received == 7 + 1 + 6
