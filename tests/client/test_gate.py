"""The one door out: what may pass it, and that nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.gate import Gate
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import initialise
from fedtwin_shared.round import (
    HISTOGRAM,
    Arrays,
    Refusal,
    RefusalCode,
    SiteUpdate,
    Task,
    histogram_shape,
    verify_answer,
)
from tests.world import make_world

WORLD = make_world()
GATE = Gate(site="north", key=WORLD.sites["north"])
PLAN = b"the plan's envelope"


def verify(envelope: bytes, arrays: Arrays, task: Task = Task.TRAIN) -> SiteUpdate | Refusal:
    return verify_answer(envelope, arrays, plan=PLAN, task=task, study=WORLD.study, roster=WORLD.roster)


def test_exactly_the_declared_arrays_pass() -> None:
    model = initialise(WORLD.study)
    assert isinstance(verify(GATE.release(PLAN, WORLD.study, Task.TRAIN, model), model), SiteUpdate)
    histogram = {HISTOGRAM: np.ones(histogram_shape(WORLD.study), dtype=np.float32)}
    envelope = GATE.release(PLAN, WORLD.study, Task.EVALUATE, histogram)
    assert isinstance(verify(envelope, histogram, Task.EVALUATE), SiteUpdate)


@pytest.mark.parametrize("extra", ["sample_size", "loss", "seconds"])
def test_an_undeclared_array_does_not_pass(extra: str) -> None:
    with pytest.raises(VerificationError):
        GATE.release(PLAN, WORLD.study, Task.TRAIN, {**initialise(WORLD.study), extra: np.ones(1, dtype=np.float32)})


def test_scores_do_not_pass_as_a_histogram() -> None:
    with pytest.raises(VerificationError):
        GATE.release(PLAN, WORLD.study, Task.EVALUATE, {HISTOGRAM: np.ones(60, dtype=np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_do_not_pass(value: float) -> None:
    model = {name: np.full_like(array, value) for name, array in initialise(WORLD.study).items()}
    with pytest.raises(VerificationError):
        GATE.release(PLAN, WORLD.study, Task.TRAIN, model)


@pytest.mark.parametrize("code", RefusalCode)
def test_every_refusal_verifies_and_holds_its_code_only(code: RefusalCode) -> None:
    answer = verify(GATE.refuse(PLAN, code), {})
    assert isinstance(answer, Refusal)
    assert answer.code is code
    assert set(answer.model_dump()) == {"format", "site", "plan", "code"}


def test_an_attestation_is_this_hospitals_and_of_this_study() -> None:
    digest = WORLD.study.digest
    assert GATE.verify_attestation(GATE.attest(digest), digest) == "command"
    assert GATE.verify_attestation(GATE.attest(digest, by="person"), digest) == "person"
    other = Gate(site="north", key=Ed25519PrivateKey.generate())
    south = Gate(site="south", key=WORLD.sites["north"])
    for forged in (GATE.attest("0" * 64), other.attest(digest), south.attest(digest), b"", b"{}"):
        with pytest.raises(VerificationError):
            GATE.verify_attestation(forged, digest)


def test_an_attestation_is_no_answer() -> None:
    with pytest.raises(VerificationError):
        verify(GATE.attest(WORLD.study.digest), {})


def test_the_key_is_not_in_the_gates_text() -> None:
    assert "Ed25519" not in repr(GATE)
