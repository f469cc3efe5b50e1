"""What an auditor may say after a bundle was verified: every figure of the report, as JSON.

Design note: a report exists only of a bundle that holds, so nothing in it has to be marked as doubtful. Every ε here is
the filter's or the odometer's, except the price of one signed plan, which is named so. Numbers that are no integers are
decimal text; the same bundle and version of fedtwin give the same report, byte for byte.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtwin_shared.ledger.account import PLACES, LedgerState, Phase, StudyAccount
from fedtwin_shared.ledger.block_report import describe_blocks, share_of
from fedtwin_shared.ledger.blocks import READMITTED, Block
from fedtwin_shared.ledger.compliance_mapping import MAPPING
from fedtwin_shared.ledger.entry import Conformance, Part, TaskKey
from fedtwin_shared.ledger.mechanism import (
    DiscreteLaplace,
    Gaussian,
    Mechanism,
    NotPrivate,
    PoissonGaussian,
    format_decimal,
    format_use,
)
from fedtwin_shared.ledger.named_documents import NamedDocuments, read_documents
from fedtwin_shared.ledger.note import VerifierKey
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.ledger.plan_price import price_plan
from fedtwin_shared.ledger.renyi import keep_slack, price_of
from fedtwin_shared.ledger.report_statements import ASSUMPTIONS, CHECKS, IMPLEMENTATION, TRUST_MODEL
from fedtwin_shared.ledger.spending_history import SpendingHistory
from fedtwin_shared.ledger.statement import format_time
from fedtwin_shared.ledger.verification import VerifiedBundle, VerifiedLog
from fedtwin_shared.signing import format_public_key

Json = dict[str, Any]

MOST_NAMES: Final = 12  # in one sentence


def describe_audit(data: bytes, found: VerifiedBundle[SpendingHistory], *, pinned: PinnedKeys) -> Json:
    """Return the report of a verified bundle. data: the bundle's bytes, named by their digest.

    - the same bundle gives the same report
    """
    documents = read_documents(found.documents)
    keys = {name: _signing_key(key) for name, key in pinned.log_keys.items()}
    hospitals = {
        name: _describe_log(log, documents, pinned, signer=keys[name]) for name, log in sorted(found.logs.items())
    }
    return {
        "format": 1,
        "made_by": f"fedtwin {version('fedtwin')}",
        "bundle": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "claims": _summarise_claims(hospitals),
        "checks": list(CHECKS),
        "trust_model": TRUST_MODEL,
        "assumptions": list(ASSUMPTIONS),
        "implementation": list(IMPLEMENTATION),
        "hospitals": hospitals,
        "mapping": [
            {
                "source": row.source,
                "place": row.place,
                "asks": row.asks,
                "evidence": row.evidence,
                "not_evidence": row.missing,
            }
            for row in MAPPING
        ],
    }


def _summarise_claims(hospitals: dict[str, Json]) -> list[str]:
    """One sentence for all hospitals that claim the same."""
    alike: dict[tuple[str, str] | None, list[str]] = {}
    for name, part in hospitals.items():
        claim = part["claim"]
        alike.setdefault((claim["epsilon"], claim["delta"]) if "epsilon" in claim else None, []).append(name)
    sentences = []
    for key, names in alike.items():
        shown = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        )
        if key is None:
            sentences.append(f"Nothing was released under the ledger of {shown}, which is empty.")
            continue
        answers = sum(sum(hospitals[name]["claim"]["releases"].values()) for name in names)
        studies = {study["study"] for name in names for study in hospitals[name]["studies"]}
        where = shown if len(names) == 1 else f"each of {len(names)} hospitals ({shown})"
        sentences.append(
            f"For every patient of {where}, with all of their records there added or removed, all that has left that "
            f"hospital under its ledger ({_count(answers, 'answer')} of {_count(len(studies), 'study', 'studies')}"
            f"{' in all' if len(names) > 1 else ''}) and all that the ledger can ever admit is together "
            f"(ε = {key[0]}, δ = {key[1]})-differentially private, under the trust model and the assumptions below."
        )
    return sentences


def _describe_log(
    log: VerifiedLog[SpendingHistory], documents: NamedDocuments, pinned: PinnedKeys, *, signer: str
) -> Json:
    history = log.state
    described: Json = {
        "integrity": {
            "origin": log.checkpoint.origin,
            "entries": log.checkpoint.size,
            "root": log.checkpoint.root.hex(),
            "cosigned": {one.witness: format_time(one.timestamp) for one in log.cosignatures},
            "required": f"{pinned.required} of {len(pinned.witnesses)}, of whom {pinned.faulty} may lie",
            "kinds": dict(sorted(history.kinds.items())),
            "first_entry": format_time(history.times[0]) if history.times else None,
            "last_entry": format_time(history.times[-1]) if history.times else None,
        }
    }
    if history.state.policy is None:
        return described | {"claim": {}}
    return described | {
        "claim": _describe_claim(history),
        "blocks": _describe_blocks(history, documents),
        "studies": [
            _describe_study(study, account, history.state, documents)
            for study, account in sorted(history.state.studies.items(), key=lambda item: item[1].number)
        ],
        "work": _describe_work(history),
        "conformance": [_describe_conformance(one, documents, signer=signer) for one in history.conformance],
        "code": [
            {"digest": code, "answers": use.answers, "first": format_time(use.first), "last": format_time(use.last)}
            for code, use in history.codes.items()
        ],
        "site_policies": [{"digest": digest, "since": format_time(time)} for digest, time in history.site_policies],
    }


def _describe_claim(history: SpendingHistory) -> Json:
    state = history.state
    policy, epsilon = state.in_force, format_decimal(state.claims[-1])
    delta, sealed = format_decimal(policy.delta), _count_sealed(state)
    most = max((row.odometer for row in describe_blocks(state)), default=Decimal(0))
    return {
        "unit": "one patient, with all of their records at this hospital",
        "adjacency": policy.adjacency.replace("-", " "),
        "epsilon": epsilon,
        "delta": delta,
        "epsilon_so_far": format_epsilon(most),
        "releases": dict(sorted(sealed.items())),
        "lifetime": "the whole life of the ledger, every study in it and every later one: it does not start anew",
        "rule": f"Rényi filter at order {policy.order}",
        "claims": [{"epsilon": format_decimal(one.epsilon), "since": format_time(one.time)} for one in history.claims],
    }


def _describe_blocks(history: SpendingHistory, documents: NamedDocuments) -> list[Json]:
    state = history.state
    return [
        {
            "block": row.block,
            "patients": describe_block(state.blocks[row.block], state, documents),
            "epsilon_odometer": format_epsilon(row.odometer),
            "epsilon_filter": format_epsilon(row.epsilon),
            "spent": str(1 - row.left),
            "remaining": str(row.left),
            "by_study": {
                study: str(share_of(nano, state.budget))
                for study, nano in sorted(history.blocks[row.block].by_study.items())
            },
        }
        for row in describe_blocks(state)
    ]


def describe_block(block: Block, state: LedgerState, documents: NamedDocuments) -> str:
    """Return in words which patients a block is of."""
    names = {account.number: documents.name_of(account.enrolment) for account in state.studies.values()}
    admitted = "readmitted or unknown" if block.family == READMITTED else f"admitted in epoch {block.family}"
    studies = [f"in “{part}” of {names[number]}" for number, part in block.membership]
    return ", ".join([admitted, *(studies or ["in no open study"])])


def _describe_study(study: str, account: StudyAccount, state: LedgerState, documents: NamedDocuments) -> Json:
    signed = documents.studies.get(account.enrolment.plan)
    return {
        "study": study,
        "plan": account.enrolment.plan,
        "compared": signed is not None,  # one that is there and differs makes the bundle fail
        "name": documents.name_of(account.enrolment),
        "question": None if signed is None else signed.study.question,
        "mode": None if signed is None else signed.study.privacy.mode,
        "coordinator": None if signed is None else signed.roster.coordinator.public_key,
        "closed": account.closed,
        "parts": [_describe_part(part, account, state) for part in account.enrolment.parts],
    }


def _describe_part(part: Part, account: StudyAccount, state: LedgerState) -> Json:
    at, charged, planned = PLACES[state.in_force.order], 0, 0
    uses = []
    for use in part.programme:
        price, used = price_of(use.mechanism), account.used.get((part.name, use.mechanism), 0)
        assert price is not None  # what has no price was never enrolled
        charged, planned = charged + used * price[at], planned + use.count * price[at]
        uses.append({"mechanism": describe_mechanism(use.mechanism), "charged": used, "exactly": format_use(use)})
    return {
        "part": part.name,
        "programme": uses,
        "price": str(share_of(planned, state.budget)),
        "charged": str(share_of(charged, state.budget)),
        "remaining": str(share_of(0 if account.closed else planned - charged, state.budget)),
        "plan_epsilon": _price_plan(part, state),
    }


def _price_plan(part: Part, state: LedgerState) -> str | None:
    try:
        return format_plan(price_plan(part.programme, delta=keep_slack(state.in_force.delta)))
    except Exception:  # parameters are a stranger's, and the second accountant has limits of its own: no figure then
        return None


def _describe_work(history: SpendingHistory) -> Json:
    tasks = history.state.tasks
    phases = Counter(task.phase for task in tasks.values())
    unsealed = [key for key, task in tasks.items() if task.phase in (Phase.RESERVED, Phase.STARTED)]
    return {
        "reserved": len(tasks),
        "released": phases[Phase.RELEASED],
        "sealed_only": phases[Phase.SEALED],
        "started_never_sealed": phases[Phase.STARTED],
        "reserved_never_started": phases[Phase.RESERVED],
        "aborted": phases[Phase.ABORTED],
        "unsealed": unsealed,
        "refusals": dict(sorted(history.refusals.items())),
    }


def _describe_conformance(entry: Conformance, documents: NamedDocuments, *, signer: str) -> Json:
    judged = documents.conformance.get(entry.result)
    return {
        "time": format_time(entry.time),
        "outcome": entry.outcome,
        "code": entry.code,
        "result": entry.result,
        "judged_anew": None if judged is None else judged | {"by_ledger_key": judged["signed_by"] == signer},
    }


def _signing_key(log: VerifierKey) -> str:
    """The key of a ledger in the form that signed documents name."""
    return format_public_key(Ed25519PublicKey.from_public_bytes(log.public))


def _count_sealed(state: LedgerState) -> Counter[str]:
    out = (Phase.SEALED, Phase.RELEASED)  # what is sealed may have left: the entry for that may be yet to come
    return Counter(TaskKey.parse(key).task for key, task in state.tasks.items() if task.phase in out)


def describe_mechanism(mechanism: Mechanism) -> str:
    """Return a mechanism in words and numbers."""
    match mechanism:
        case PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=hospitals):
            words = f"Gaussian sum over a Poisson sample, q = {format_decimal(rate)}, σ = {format_decimal(noise)}"
            return words + _shared(hospitals)
        case Gaussian(noise_multiplier=noise, hospitals=hospitals):
            return f"Gaussian sum over all, σ = {format_decimal(noise)}" + _shared(hospitals)
        case DiscreteLaplace(scale=scale, sensitivity=sensitivity):
            return f"discrete Laplace, scale {format_decimal(scale)}, sensitivity {sensitivity}"
        case NotPrivate():
            return "no noise: ε = ∞"


def _shared(hospitals: int) -> str:
    return "" if hospitals == 1 else f", a patient in up to {hospitals} records of the sum"


def format_epsilon(epsilon: Decimal) -> str:
    """Return ε with three digits, rounded up.

    >>> format_epsilon(Decimal("1.0001"))
    '1.001'
    """
    return str(epsilon.quantize(Decimal("0.001"), rounding="ROUND_CEILING"))


def format_plan(epsilon: float) -> str:
    """Return the price of a plan with three digits, rounded up; ∞ where it has none."""
    return format_epsilon(Decimal(repr(epsilon))) if math.isfinite(epsilon) else "∞"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
