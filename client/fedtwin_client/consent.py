"""What a patient agreed to, as far as it concerns studies: FHIR consents, the hospital's own, and the rule over them.

Design note: fail-closed. A consent that is in force and not understood (exceptions inside it, a time that cannot be
read, no decision) counts as a refusal; one refusal in force outweighs any number of permissions. Dates without a zone
are read as UTC, and a last day is part of its period (FHIR R4 and R5, Period.end).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from fedtwin_client.ingest.records import ConsentRecord

Rule = Literal["opt-in", "opt-out"]

RESEARCH: Final = "HRESCH"  # HL7 v3 ActReason: healthcare research, which training a shared model is
# The same table: purposes that are certainly not research. A refusal for these alone is none for studies.
OTHER_PURPOSES: Final = frozenset({"TREAT", "ETREAT", "CAREMGT", "HPAYMT", "HOPERAT", "HMARKT", "HDIRECT", "PATADMIN"})
OPTED_IN: Final = frozenset({"OPTIN"})  # HL7 v3 ActCode, of R4's policyRule
NO_EFFECT: Final = frozenset({"draft", "proposed", "inactive", "entered-in-error", "not-done"})
REFUSED: Final = "rejected"  # R4: the patient said no
OWN: Final = "hospital"  # source of what the hospital's own people entered


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one source says of one patient, from `since` until before `until`, ms since 1970 UTC; None: no end.

    source: whose later decision replaces an earlier one. outcome: `none` replaces and says nothing.
    """

    source: str
    outcome: Literal["permit", "deny", "none"]
    since: int | None = None
    until: int | None = None

    def holds(self, at: int) -> bool:
        """Return whether it is in force at a time."""
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)


def is_admitted(decisions: Iterable[Decision], rule: Rule, *, at: int) -> bool:
    """Return whether a patient may be in a cohort at a time, by their decisions in the order in which they came.

    - the latest decision of a source is the only one of it
    - a refusal outweighs every permission
    - without any decision: everybody with `opt-out`, nobody with `opt-in`
    """
    latest = {decision.source: decision for decision in decisions}
    outcomes = {decision.outcome for decision in latest.values() if decision.holds(at)}
    if "deny" in outcomes:
        return False
    return rule == "opt-out" or "permit" in outcomes


def understand(record: ConsentRecord) -> Decision:
    """Return what a FHIR Consent says about studies.

    - a permission for another purpose than research permits nothing
    - a permission with exceptions inside, or whose period cannot be read, is a refusal
    - a refusal whose period cannot be read has no end
    """
    source = f"fhir {record.id}"
    start, end = _read_period(record.start), _read_period(record.end)
    unreadable = (record.start and start is None) or (record.end and end is None)
    if record.status in NO_EFFECT:
        return Decision(source=source, outcome="none")
    permits = (record.decision or ("permit" if record.policy in OPTED_IN else "deny")) == "permit"
    purposes = set(record.purposes)
    if permits and record.status == "active" and not record.nested and not unreadable:
        if purposes and RESEARCH not in purposes:
            return Decision(source=source, outcome="none")
        return Decision(
            source=source, outcome="permit", since=start[0] if start else None, until=end[1] if end else None
        )
    if not permits and purposes and purposes <= OTHER_PURPOSES and record.status != REFUSED:
        return Decision(source=source, outcome="none")
    if unreadable:
        return Decision(source=source, outcome="deny")
    return Decision(source=source, outcome="deny", since=start[0] if start else None, until=end[1] if end else None)


def _read_period(text: str) -> tuple[int, int] | None:
    """Return the first ms of a FHIR dateTime and the first one after it; None: none, or not readable."""
    try:
        if len(text) == 4 and text.isdigit():
            start, end = datetime(int(text), 1, 1, tzinfo=UTC), datetime(int(text) + 1, 1, 1, tzinfo=UTC)
        elif len(text) == 7:
            start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
            end = (start + timedelta(days=32)).replace(day=1)
        else:
            start = datetime.fromisoformat(text)
            start = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
            end = start + (timedelta(days=1) if len(text) == 10 else timedelta(milliseconds=1))
        return _milliseconds(start), _milliseconds(end)
    except (ValueError, OverflowError):
        return None


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


STATEMENT: Final = """\
What a withdrawal does
  From the next round of every study on, this hospital uses nothing of the patient for training or evaluation.
  Nobody outside learns of it: sampling rates and denominators are constants of the study and stay as they are, and the
  ledger gets one salted digest of the cohort in each round, whether or not the cohort changed.
What it cannot undo
  Answers that left before it stay where they are, and so do models made from them. Each held noise that this hospital
  added itself, so that what anybody can conclude from all of them about the patient is bounded by the ε in the ledger.
  Releases that the patient's data may have touched are kept, encrypted, and are listed for that patient.
  The ε that was charged stays charged, for ever: nothing is given back.
  A round that has begun ends with the cohort that it began with.
What it does not do
  It deletes nothing. Erasure is `fedtwin client forget`; the hospital's own files are the hospital's to change.
"""
