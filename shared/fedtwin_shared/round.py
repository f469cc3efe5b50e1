"""What crosses between coordinator and sites: a signed plan down, a signed answer up. Nothing else.

Design note: a `SiteUpdate` holds the site's name, the digest of the very plan it answers and the arrays that the
study declares: no sample size, no loss, no timing, no text. A `Refusal` holds a code of a fixed list.
Only a site can sign an answer (`fedtwin_client.gate`); the server obtains one from `verify_answer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import digest_parameters, parameter_shapes, verify_parameters
from fedtwin_shared.roster import Name, Roster
from fedtwin_shared.signal import CATEGORIES
from fedtwin_shared.signing import canonical_json, digest, sign_envelope, verify_envelope
from fedtwin_shared.study import Study

PLAN_TYPE = "application/vnd.fedtwin.round-plan+json"
UPDATE_TYPE = "application/vnd.fedtwin.site-update+json"
REFUSAL_TYPE = "application/vnd.fedtwin.refusal+json"
HISTOGRAM = "histogram"

Kind = TypeVar("Kind", bound=BaseModel)
Arrays = Mapping[str, npt.NDArray[np.generic]]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Task(StrEnum):
    """What a site is asked to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class RefusalCode(StrEnum):
    """Why a site says no. Codes are only ever added; none tells anything about a patient."""

    BUNDLE_UNKNOWN = "bundle-unknown"
    PLAN_UNVERIFIED = "plan-unverified"
    STUDY_UNKNOWN = "study-unknown"
    STUDY_UNSIGNED = "study-unsigned"
    STUDY_REFUSED = "study-refused"
    MODEL_UNVERIFIED = "model-unverified"
    POLICY = "policy"
    POLICY_UNVERIFIED = "policy-unverified"
    POLICY_EXPIRED = "policy-expired"
    COHORT_NOT_ATTESTED = "cohort-not-attested"
    BUDGET_SPENT = "budget-spent"
    ATTEMPT_SPENT = "attempt-spent"
    SITE_NOT_READY = "site-not-ready"
    WITNESSES_AWAY = "witnesses-away"


class _Signed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RoundPlan(_Signed):
    """The coordinator's instruction for one task of one round.

    run: fedtwin's own id of the run; Flower's ids name nothing.
    round: of the model; an evaluation of round `training.rounds` is that of the released model.
    model: digest of the parameters that travel beside the plan.
    """

    format: Literal[1] = 1
    study: Digest
    run: RunId
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    task: Annotated[Task, Field(strict=False)]
    model: Digest


class _Answer(_Signed):
    format: Literal[1] = 1
    site: Name
    plan: Digest  # of the plan's envelope, byte for byte as received


class UpdateStatement(_Answer):
    """What a site signs about its update: the arrays' digest, bound to the plan."""

    arrays: Digest


class Refusal(_Answer):
    """A site's signed "no"."""

    code: Annotated[RefusalCode, Field(strict=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteUpdate:
    """One site's verified contribution: parameters after training, or a score histogram."""

    site: str
    plan: str
    arrays: Arrays


def sign_round_plan(plan: RoundPlan, key: Ed25519PrivateKey) -> bytes:
    """Return the plan's envelope, signed by the coordinator."""
    return sign_envelope(canonical_json(plan.model_dump(mode="json")), payload_type=PLAN_TYPE, key=key)


def verify_round_plan(envelope: bytes, *, coordinator: str) -> RoundPlan:
    """Return the plan that the holder of the public key `coordinator` signed. Raises `VerificationError`."""
    verified = verify_envelope(envelope, payload_type=PLAN_TYPE, trusted={coordinator: "coordinator"})
    return _parse(RoundPlan, verified.payload)


def declared_arrays(study: Study, task: Task) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of everything that may leave a site for `task`; there is nothing else."""
    if task is Task.TRAIN:
        return parameter_shapes(study)
    return {HISTOGRAM: histogram_shape(study)}


def histogram_shape(study: Study) -> tuple[int, int, int]:
    """Return (groups, classes, bins) of the study's score histograms: the first group is everybody."""
    groups = 1 + sum(len(CATEGORIES[key].levels) for key in study.evaluation.subgroups)
    return groups, 2, study.evaluation.bins + 2


def verify_answer(
    envelope: bytes, arrays: Arrays, *, plan: bytes, task: Task, study: Study, roster: Roster
) -> SiteUpdate | Refusal:
    """Return a site's answer to `plan` (the envelope that was sent).

    Raises `VerificationError` unless
      (1) the envelope is an update or a refusal signed by a site of the roster that takes part in the study;
      (2) the name in it is the signer's;
      (3) it answers this plan;
      (4) a refusal carries no arrays; an update exactly the declared ones, finite, with the digest it signed.
    """
    # (1)
    trusted = roster.keys()
    kind = _payload_type(envelope)
    verified = verify_envelope(envelope, payload_type=kind, trusted=trusted)
    if study.participant(trusted[verified.signer]) is None:
        raise VerificationError(
            field="signatures", expected="a trusted signer, of the study", found=trusted[verified.signer]
        )
    statement: Refusal | UpdateStatement
    statement = _parse(Refusal, verified.payload) if kind == REFUSAL_TYPE else _parse(UpdateStatement, verified.payload)
    # (2)
    if trusted[verified.signer] != statement.site:
        raise VerificationError(field="site", expected=trusted[verified.signer], found=statement.site)
    # (3)
    if statement.plan != digest(plan):
        raise VerificationError(field="plan", expected="the plan of this round", found="another")
    # (4)
    if isinstance(statement, Refusal):
        if arrays:
            raise VerificationError(field="arrays", expected="none beside a refusal", found=f"{len(arrays)}")
        return statement
    checked = verify_parameters(arrays, declared_arrays(study, task))
    if digest_parameters(checked) != statement.arrays:
        raise VerificationError(field="arrays", expected="the digest that was signed", found="another")
    return SiteUpdate(site=statement.site, plan=statement.plan, arrays=checked)


def _payload_type(envelope: bytes) -> str:
    try:
        kind = json.loads(envelope)["payloadType"]
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise VerificationError(field="envelope", expected="a DSSE envelope", found="something else") from err
    return kind if kind == REFUSAL_TYPE else UPDATE_TYPE


def _parse(kind: type[Kind], payload: bytes) -> Kind:
    try:
        parsed = kind.model_validate_json(payload)
    except ValidationError as err:
        first = err.errors()[0]
        # Names of unknown fields are the sender's words: one line, and not too long, in anybody's log.
        where = ".".join(map(str, first["loc"])).encode("unicode_escape").decode()[:100]
        raise VerificationError(field=where, expected=first["msg"], found="another value") from err
    if canonical_json(parsed.model_dump(mode="json")) != payload:
        raise VerificationError(field="payload", expected="canonical JSON", found="another form")
    return parsed
