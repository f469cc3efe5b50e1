from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import (
    REFUSAL_TYPE,
    UPDATE_TYPE,
    Arrays,
    Refusal,
    RefusalCode,
    RoundPlan,
    SiteUpdate,
    Task,
    UpdateStatement,
    declared_arrays,
    sign_round_plan,
    verify_answer,
    verify_round_plan,
)
from fedtwin_shared.signing import canonical_json, digest, sign_envelope
from tests.world import make_world

WORLD = make_world()
PARAMETERS = initialise(WORLD.study)
PLAN = RoundPlan(
    study=WORLD.study.digest,
    run="0" * 32,
    round=1,
    attempt=1,
    task=Task.TRAIN,
    model=digest_parameters(PARAMETERS),
)
SENT = sign_round_plan(PLAN, WORLD.coordinator)


def answer(arrays: Arrays, *, signer: str = "north", **changes: Any) -> bytes:
    statement = {"site": "north", "plan": digest(SENT), "arrays": digest_parameters(arrays)} | changes
    payload = canonical_json(UpdateStatement.model_validate(statement).model_dump(mode="json"))
    return sign_envelope(payload, payload_type=UPDATE_TYPE, key=WORLD.sites[signer])


def verify(envelope: bytes, arrays: Arrays, task: Task = Task.TRAIN) -> SiteUpdate | Refusal:
    return verify_answer(envelope, arrays, plan=SENT, task=task, study=WORLD.study, roster=WORLD.roster)


def test_a_plan_round_trips_and_only_from_the_coordinator() -> None:
    assert verify_round_plan(SENT, coordinator=WORLD.coordinator_key) == PLAN
    with pytest.raises(VerificationError):
        verify_round_plan(sign_round_plan(PLAN, WORLD.sites["north"]), coordinator=WORLD.coordinator_key)


@pytest.mark.parametrize(
    "payload",
    [b"{}", b"[]", b"x", canonical_json(PLAN.model_dump(mode="json") | {"extra": 1}),
     canonical_json(PLAN.model_dump(mode="json") | {"attempt": 0}),
     canonical_json(PLAN.model_dump(mode="json") | {"task": "sing"}),
     canonical_json(PLAN.model_dump(mode="json")) + b"\n"],
)  # fmt: skip
def test_a_plan_of_another_form_is_refused(payload: bytes) -> None:
    from fedtwin_shared.round import PLAN_TYPE

    envelope = sign_envelope(payload, payload_type=PLAN_TYPE, key=WORLD.coordinator)
    with pytest.raises(VerificationError):
        verify_round_plan(envelope, coordinator=WORLD.coordinator_key)


def test_an_update_is_obtained_from_its_bytes() -> None:
    update = verify(answer(PARAMETERS), PARAMETERS)
    assert isinstance(update, SiteUpdate)
    assert update.site == "north"
    assert all(np.array_equal(update.arrays[name], PARAMETERS[name]) for name in PARAMETERS)


def test_an_update_signed_by_a_stranger_is_refused() -> None:
    payload = canonical_json(
        UpdateStatement(site="north", plan=digest(SENT), arrays=digest_parameters(PARAMETERS)).model_dump(mode="json")
    )
    envelope = sign_envelope(payload, payload_type=UPDATE_TYPE, key=Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError, match="trusted signer"):
        verify(envelope, PARAMETERS)


def test_a_site_cannot_answer_in_anothers_name() -> None:
    with pytest.raises(VerificationError, match="site"):
        verify(answer(PARAMETERS, signer="south"), PARAMETERS)


def test_an_answer_to_another_plan_is_refused() -> None:
    with pytest.raises(VerificationError, match="plan"):
        verify(answer(PARAMETERS, plan="0" * 64), PARAMETERS)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": np.array([np.nan], dtype=np.float32)},
        {"bias": np.array([np.inf], dtype=np.float32)},
        {"bias": np.array([1.0], dtype=np.float64)},
        {"bias": np.array([1.0, 2.0], dtype=np.float32)},
        {"patients": np.array([400.0], dtype=np.float32)},
    ],
)
def test_arrays_beyond_the_declared_ones_or_not_finite_are_refused(change: dict[str, Any]) -> None:
    arrays = PARAMETERS | change
    with pytest.raises(VerificationError):
        verify(answer(arrays), arrays)


def test_arrays_other_than_the_signed_ones_are_refused() -> None:
    arrays = PARAMETERS | {"bias": np.array([1.0], dtype=np.float32)}
    with pytest.raises(VerificationError, match="digest"):
        verify(answer(PARAMETERS), arrays)


def test_a_histogram_is_not_an_answer_to_training() -> None:
    shape = declared_arrays(WORLD.study, Task.EVALUATE)["histogram"]
    arrays = {"histogram": np.zeros(shape, dtype=np.float32)}
    assert isinstance(verify(answer(arrays), arrays, Task.EVALUATE), SiteUpdate)
    with pytest.raises(VerificationError, match="parameters"):
        verify(answer(arrays), arrays)


def test_a_refusal_is_a_value_with_a_fixed_code_and_no_arrays() -> None:
    payload = canonical_json(
        Refusal(site="south", plan=digest(SENT), code=RefusalCode.BUDGET_SPENT).model_dump(mode="json")
    )
    envelope = sign_envelope(payload, payload_type=REFUSAL_TYPE, key=WORLD.sites["south"])
    refused = verify(envelope, {})
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.BUDGET_SPENT
    with pytest.raises(VerificationError, match="none beside a refusal"):
        verify(envelope, PARAMETERS)


def test_a_refusal_with_free_text_is_refused() -> None:
    payload = canonical_json({"format": 1, "site": "south", "plan": digest(SENT), "code": "patient 17 is missing"})
    envelope = sign_envelope(payload, payload_type=REFUSAL_TYPE, key=WORLD.sites["south"])
    with pytest.raises(VerificationError, match="code"):
        verify(envelope, {})


def test_a_site_that_takes_no_part_is_refused() -> None:
    three = make_world(sites=("north", "south", "east"))
    study = three.study.model_copy(update={"participants": three.study.participants[:2]})
    payload = canonical_json(
        UpdateStatement(site="east", plan=digest(SENT), arrays=digest_parameters(PARAMETERS)).model_dump(mode="json")
    )
    envelope = sign_envelope(payload, payload_type=UPDATE_TYPE, key=three.sites["east"])
    with pytest.raises(VerificationError, match="trusted signer"):
        verify_answer(envelope, PARAMETERS, plan=SENT, task=Task.TRAIN, study=study, roster=three.roster)


@pytest.mark.parametrize("envelope", [b"", b"{}", b"[]", b'"x"', b"[" * 50_000, b'{"payloadType":3}'])
def test_bytes_that_are_no_envelope_are_refused(envelope: bytes) -> None:
    with pytest.raises(VerificationError):
        verify(envelope, PARAMETERS)
