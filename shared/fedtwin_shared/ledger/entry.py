"""What a ledger says: frozen records, each with exactly one form as bytes.

An entry is canonical JSON (RFC 8785) of an object with `v`, `type`, `time` (Unix seconds), `salt` and the fields of its
type: integers and text only, numbers that are no integers as decimal text, no field optional. The salt is 16 random
bytes that the caller passes in: without it a witness who sees hashes could guess an entry that holds little.
No entry holds a number of patients, a sampled number or a statistic of noise that was drawn.

Compatibility promise. An entry of version 1 is read, and means the same, in every later version of fedtwin: its types,
fields, decimal form and prices (`renyi.ORDERS`, rounding) never change. What is new is a new type, or a new version of
the whole format, which an older reader refuses instead of guessing. Nothing unknown is ever skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Final

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.mechanism import Use

VERSION: Final = 1
TASKS: Final = ("train", "evaluate", "statistics", "audit")
MOST_BLOCKS: Final = 1024  # of one ledger, and so in one entry; prevents DoS of whoever verifies
ROUND_PATTERN: Final = "[0-9a-f]{64}/[0-9a-f]{32}/(?:0|[1-9][0-9]{0,6})"
TASK_PATTERN: Final = f"{ROUND_PATTERN}/[1-9][0-9]{{0,6}}/(?:{'|'.join(TASKS)})"
_TASK: Final = re.compile(TASK_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """Names one thing that may be done once. run: fedtwin's own id of the run, kept when it is resumed."""

    study: str
    run: str
    round: int
    attempt: int
    task: str

    def __str__(self) -> str:
        return f"{self.study}/{self.run}/{self.round}/{self.attempt}/{self.task}"

    @property
    def round_key(self) -> str:
        """The key of the round's `CohortDigest`."""
        return f"{self.study}/{self.run}/{self.round}"

    @classmethod
    def parse(cls, text: str) -> TaskKey:
        """Return the key that was written. Raises `VerificationError`."""
        if _TASK.fullmatch(text) is None:
            raise VerificationError(field="task", expected="study/run/round/attempt/task", found="another form")
        study, run, number, attempt, task = text.split("/")
        return cls(study=study, run=run, round=int(number), attempt=int(attempt), task=task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the parts of a study, in at most one of which a patient is, and everything that may ever run on it."""

    name: str
    programme: tuple[Use, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    time: int
    salt: str

    TYPE: ClassVar[str]

    @property
    def key(self) -> str:
        """With `TYPE`, the name under which a log takes this entry once."""
        return self.salt


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(_Entry):
    """The claim that this ledger keeps. The first entry; a later one may change the site policy's digest alone.

    programme: what was declared when `order` was chosen. signer: public key that signs any change of ε.
    site_policy: digest of the hospital's own signed policy.
    """

    TYPE: ClassVar[str] = "policy"
    epsilon: Decimal
    delta: Decimal
    order: int
    programme: tuple[Use, ...]
    signer: str
    site_policy: str
    rule: str = "renyi-filter"
    unit: str = "patient"
    adjacency: str = "add-or-remove-one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(_Entry):
    """A changed ε, with the DSSE envelope of `claim_statement` that says who changed it. number: from 1, in order."""

    TYPE: ClassVar[str] = "claim"
    number: int
    epsilon: Decimal
    envelope: str

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return str(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch(_Entry):
    """Opens an admission epoch: blocks for patients never seen before, and for those of whom that is not known."""

    TYPE: ClassVar[str] = "epoch"
    number: int

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return str(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment(_Entry):
    """A study that this hospital approved. plan: digest of the signed study's envelope."""

    TYPE: ClassVar[str] = "enrolment"
    study: str
    plan: str
    parts: tuple[Part, ...]

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return self.study


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure(_Entry):
    """The end of a study: nothing more is reserved for it, and membership in it is forgotten, its price is not."""

    TYPE: ClassVar[str] = "closure"
    study: str

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return self.study


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortDigest(_Entry):
    """Who is in a study from this round on: a salted digest, written every round whether or not it changed."""

    TYPE: ClassVar[str] = "cohort"
    round: str  # study/run/round
    cohort: str

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return self.round


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskEntry(_Entry):
    task: str  # a `TaskKey` as text

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return self.task


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(_TaskEntry):
    """The charge, before anything is read. A crash after it leaves it charged for ever.

    blocks: whose patients may take part. price: nano-RDP of `uses` at the filter's order. membership: salted digest of
    the keyed map from patients to blocks.
    """

    TYPE: ClassVar[str] = "reserve"
    blocks: tuple[str, ...]
    uses: tuple[Use, ...]
    price: int
    membership: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(_TaskEntry):
    """Written before the first patient takes part: from here on there is no refund."""

    TYPE: ClassVar[str] = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(_TaskEntry):
    """The answer exists. plan: digest of the round plan's envelope that it answers. output: digest of its noised bytes.

    code: digest of the code that made it.
    """

    TYPE: ClassVar[str] = "seal"
    plan: str
    output: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(_TaskEntry):
    """The answer may leave. recipient: public key. checkpoint: size of the cosigned tree that left with it, 0: none."""

    TYPE: ClassVar[str] = "release"
    recipient: str
    checkpoint: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(_TaskEntry):
    """Nothing was read after the reservation: the only refund."""

    TYPE: ClassVar[str] = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(_Entry):
    """A signed "no". plan: digest of the envelope that was refused: a round plan's, or a study's at its approval."""

    TYPE: ClassVar[str] = "refusal"
    plan: str
    code: str

    @property
    def key(self) -> str:
        """See `_Entry.key`."""
        return f"{self.plan}/{self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance(_Entry):
    """A run of the conformance audit, which has no patient and costs nothing. result: digest of its report."""

    TYPE: ClassVar[str] = "conformance"
    code: str
    result: str
    outcome: str


TaskEntry = Reserve | Start | Seal | Release | Abort
Entry = Policy | Claim | Epoch | Enrolment | Closure | CohortDigest | TaskEntry | Refusal | Conformance
