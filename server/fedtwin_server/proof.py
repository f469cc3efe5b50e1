"""Whose cosignatures a run's updates need: fixed when it begins, the same at every resume, stated in its report.

Design note: `witnesses.toml` is read again by every process that conducts a run. Were it believed each time, a run
could count rounds without proof and report at its end that proof was asked; so the run's state fixes it at the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedtwin_server.errors import RunError
from fedtwin_server.rounds import ProofRule, RunState
from fedtwin_server.run_store import RunStore
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import quorum, verify_cosignatures
from fedtwin_shared.ledger.evidence import parse_evidence
from fedtwin_shared.ledger.note import parse_note, parse_verifier_key
from fedtwin_shared.ledger.witnesses import WITNESSES, Witnesses
from fedtwin_shared.study import Study


def proof_rule(study: Study, witnesses: Witnesses | None) -> ProofRule:
    """Return what a run of the study asks for. A study without privacy charges nothing, and needs no proof."""
    if witnesses is None or study.privacy.mode == "none":
        return ProofRule()
    return ProofRule(witnesses=tuple(sorted(map(str, witnesses.keys))), faulty=witnesses.faulty)


def fix_proof(state: RunState, rule: ProofRule) -> RunState:
    """Return the state with the rule fixed. Raises `RunError` where the run began with another one, or with none."""
    if state.proof is None and not state.history:
        return replace(state, proof=rule)
    if state.proof != rule:
        began = "a run that fixed its witnesses" if state.proof is None else f"as the run began: {_say(state.proof)}"
        raise RunError(field=WITNESSES, expected=began, found=_say(rule))
    return state


def describe_proof(state: RunState, store: RunStore) -> dict[str, Any]:
    """Return, as JSON, what was asked of every counted update and for how many of them the evidence is kept.

    - an update whose kept evidence is missing, damaged or cosigned by too few is not proven
    """
    rule = state.proof or ProofRule()
    if not rule.witnesses:
        return {"asked": False}
    keys = [parse_verifier_key(vkey) for vkey in rule.witnesses]
    required = quorum(len(keys), faulty=rule.faulty)
    updates = proven = 0
    for record in state.history:
        kept = store.read_evidence(record)
        for site in record.sites:
            updates += 1
            try:
                note = parse_note(parse_evidence(kept.get(site, b"")).note)
                verify_cosignatures(note, keys, required=required)
            except VerificationError:
                continue
            proven += 1
    return {
        "asked": True,
        "witnesses": [key.name for key in keys],
        "required": required,
        "updates": updates,
        "proven": proven,
    }


def _say(rule: ProofRule) -> str:
    if not rule.witnesses:
        return "no proof asked"
    names = ", ".join("+".join(vkey.split("+")[:2]) for vkey in rule.witnesses)  # name and key id
    return f"{names} with faulty = {rule.faulty}"
