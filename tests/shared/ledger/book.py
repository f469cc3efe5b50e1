"""Entries that a hospital would write, with salts and times that are the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.encoding import claim_statement, encode_entry
from fedtwin_shared.ledger.entry import (
    Abort,
    Claim,
    Closure,
    CohortDigest,
    Conformance,
    Enrolment,
    Entry,
    Epoch,
    Part,
    Policy,
    Refusal,
    Release,
    Reserve,
    Seal,
    Start,
)
from fedtwin_shared.ledger.filter import choose_order
from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, PoissonGaussian, Use
from fedtwin_shared.ledger.renyi import ORDERS, price_uses
from fedtwin_shared.ledger.state import CLAIM_TYPE, History
from fedtwin_shared.signing import digest, format_public_key, sign_envelope

DELTA = Decimal("0.000001")
RUN = "b" * 32
# RFC 8032 §7.1, test 1: a secret key that everybody knows.
SIGNER = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
SIGNER_KEY = format_public_key(SIGNER.public_key())


def sampled(rate: str, noise: str, count: int) -> Use:
    mechanism = PoissonGaussian(sampling_rate=Decimal(rate), noise_multiplier=Decimal(noise))
    return Use(mechanism=mechanism, count=count)


def gaussian(noise: str, count: int) -> Use:
    return Use(mechanism=Gaussian(noise_multiplier=Decimal(noise)), count=count)


def laplace(scale: str, count: int) -> Use:
    return Use(mechanism=DiscreteLaplace(scale=Decimal(scale)), count=count)


# The two studies that the figures of this ledger are stated for.
STUDY_A, STUDY_B = digest(b"study A"), digest(b"study B")
TRAIN_A = sampled("0.05", "1", 200)
TRAIN_B = sampled("0.02", "0.8", 300)
RELEASES_B = (laplace("20", 3), gaussian("15", 2))


class Book:
    """Writes one entry after the other and keeps both the bytes and the state."""

    def __init__(self, *, epsilon: str = "8", order: int | None = None) -> None:
        self.history = History()
        self.written: list[bytes] = []
        self._epsilon, self._order = Decimal(epsilon), order

    @property
    def state(self) -> LedgerState:
        return self.history.state

    def stamp(self) -> tuple[int, str]:
        number = len(self.written)
        return 1_800_000_000 + number, digest(f"salt {number}".encode())[:32]

    def write(self, entry: Entry) -> None:
        self.history.add(entry)
        self.written.append(encode_entry(entry))

    def policy(self, **changes: object) -> None:
        time, salt = self.stamp()
        programme = (TRAIN_A, TRAIN_B, *RELEASES_B)
        order = self._order or choose_order(self._epsilon, DELTA, programme)
        fields: dict[str, object] = {
            "time": time,
            "salt": salt,
            "epsilon": self._epsilon,
            "delta": DELTA,
            "order": order,
            "programme": programme,
            "signer": SIGNER_KEY,
            "site_policy": digest(b"site policy"),
        }
        self.write(Policy(**(fields | changes)))  # type: ignore[arg-type]  # the record's own fields, some changed

    def claim(self, epsilon: str, *, key: Ed25519PrivateKey = SIGNER, number: int | None = None) -> Claim:
        time, salt = self.stamp()
        opening = self.state.opening
        assert opening is not None
        number = number or len(self.state.claims)
        statement = claim_statement(opening, number=number, epsilon=Decimal(epsilon))
        envelope = sign_envelope(statement, payload_type=CLAIM_TYPE, key=key).decode()
        return Claim(time=time, salt=salt, number=number, epsilon=Decimal(epsilon), envelope=envelope)

    def epoch(self, number: int) -> None:
        time, salt = self.stamp()
        self.write(Epoch(time=time, salt=salt, number=number))

    def enrol(self, study: str, **parts: Sequence[Use]) -> None:
        time, salt = self.stamp()
        listed = tuple(Part(name=name, programme=tuple(uses)) for name, uses in sorted(parts.items()))
        self.write(Enrolment(time=time, salt=salt, study=study, plan=digest(study.encode()), parts=listed))

    def close(self, study: str) -> None:
        time, salt = self.stamp()
        self.write(Closure(time=time, salt=salt, study=study))

    def cohort(self, study: str, round_: int) -> None:
        time, salt = self.stamp()
        self.write(CohortDigest(time=time, salt=salt, round=f"{study}/{RUN}/{round_}", cohort=digest(salt.encode())))

    def reserve_entry(
        self, study: str, *uses: Use, blocks: Sequence[str], round_: int = 1, attempt: int = 1, task: str = "train"
    ) -> Reserve:
        time, salt = self.stamp()
        policy = self.history.state.in_force
        curve = price_uses(uses)
        return Reserve(
            time=time,
            salt=salt,
            task=task_key(study, round_, attempt, task),
            blocks=tuple(sorted(blocks)),
            uses=uses,
            price=curve[ORDERS.index(policy.order)] if curve is not None else 1,
            membership=digest(b"membership"),
        )

    def reserve(
        self, study: str, *uses: Use, blocks: Sequence[str], round_: int = 1, attempt: int = 1, task: str = "train"
    ) -> None:
        if f"{study}/{RUN}/{round_}" not in self.state.rounds:
            self.cohort(study, round_)
        self.write(self.reserve_entry(study, *uses, blocks=blocks, round_=round_, attempt=attempt, task=task))

    def start(self, task: str) -> None:
        time, salt = self.stamp()
        self.write(Start(time=time, salt=salt, task=task))

    def seal(self, task: str) -> None:
        time, salt = self.stamp()
        self.write(
            Seal(time=time, salt=salt, task=task, plan=digest(b"plan"), output=digest(b"output"), code=digest(b"code"))
        )

    def release(self, task: str) -> None:
        time, salt = self.stamp()
        self.write(Release(time=time, salt=salt, task=task, recipient=SIGNER_KEY, checkpoint=7))

    def abort(self, task: str) -> None:
        time, salt = self.stamp()
        self.write(Abort(time=time, salt=salt, task=task))

    def refuse(self) -> None:
        time, salt = self.stamp()
        self.write(Refusal(time=time, salt=salt, plan=digest(b"plan"), code="budget-spent"))

    def conform(self) -> None:
        time, salt = self.stamp()
        code, result = digest(b"code"), digest(b"result")
        self.write(Conformance(time=time, salt=salt, code=code, result=result, outcome="passed"))


def task_key(study: str, round_: int = 1, attempt: int = 1, task: str = "train") -> str:
    return f"{study}/{RUN}/{round_}/{attempt}/{task}"


def opened(*, epsilon: str = "8", order: int | None = None) -> Book:
    """Return a ledger with a policy and its first admission epoch."""
    book = Book(epsilon=epsilon, order=order)
    book.policy()
    book.epoch(0)
    return book
