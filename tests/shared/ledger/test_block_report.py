"""A study in a ledger's words, and what a person is shown before it is approved."""

from __future__ import annotations

from decimal import Decimal

import pytest

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger import second_opinion
from fedtwin_shared.ledger.block_report import describe_blocks, price_parts
from fedtwin_shared.ledger.entry import Part
from fedtwin_shared.ledger.mechanism import Gaussian, Mechanism, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.ledger.renyi import Curve, price_of
from fedtwin_shared.ledger.study_programme import plan_programme
from fedtwin_shared.signing import digest
from tests.shared.ledger.book import STUDY_A, STUDY_B, TRAIN_A, TRAIN_B, Book, opened, sampled
from tests.world import make_world

PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1, "spare_rounds": 2}


def spent() -> Book:
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    book.reserve(STUDY_A, TRAIN_A, blocks=["0/1.train"])
    return book


def test_every_block_shows_what_it_spent_and_what_is_left() -> None:
    rows = {row.block: row for row in describe_blocks(spent().state)}
    assert rows.keys() == {"0", "0/1.train", "r", "r/1.train"}
    assert (rows["0"].epsilon, rows["0"].odometer, rows["0"].left) == (Decimal(0), Decimal(0), Decimal(1))
    paid = rows["0/1.train"]
    assert 6 < paid.epsilon < paid.odometer < 8
    assert Decimal("0.4") < paid.left < Decimal("0.5")


def test_a_study_is_priced_for_every_block_before_it_is_enrolled() -> None:
    parts = (Part(name="train", programme=(sampled("0.05", "1", 250),)),)
    rows = {row.block: row for row in price_parts(spent().state, parts)}
    assert {name for name, row in rows.items() if not row.affordable} == {"0/1.train"}
    assert len({row.share for row in rows.values()}) == 1
    (free, *_) = price_parts(spent().state, (Part(name="train", programme=(Use(mechanism=NotPrivate()),)),))
    assert (free.share, free.affordable) == (None, False)


def test_a_studys_programme_is_its_whole_plan() -> None:
    world = make_world(privacy=PRIVACY)
    programme = plan_programme(world.study, plan=digest(b"envelope"))
    training = PoissonGaussian(sampling_rate=Decimal("0.1"), noise_multiplier=Decimal("4.5"))
    evaluation = Gaussian(noise_multiplier=Decimal(4))
    assert (programme.training, programme.evaluation) == (training, evaluation)
    assert programme.parts == (
        Part(name="test", programme=(Use(mechanism=evaluation, count=1 + 2),)),
        Part(name="train", programme=(Use(mechanism=training, count=3 + 2),)),
    )


def test_a_study_without_noise_is_not_private_in_a_ledger_too() -> None:
    privacy = {"mode": "none", "epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 0.0}
    study = make_world(privacy=privacy, evaluation={"noise_multiplier": 0.0}).study
    programme = plan_programme(study, plan=digest(b"envelope"))
    assert (programme.training, programme.evaluation) == (NotPrivate(), NotPrivate())


def test_every_mechanism_of_a_ledger_gets_a_second_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    book = spent()
    book.enrol(STUDY_B, train=[TRAIN_B])
    assert second_opinion.recompute_history(book.written) == book.state

    def cheap(mechanism: Mechanism) -> Curve | None:
        curve = price_of(mechanism)
        return curve if curve is None or mechanism != TRAIN_B.mechanism else tuple(nano // 2 for nano in curve)

    monkeypatch.setattr(second_opinion, "price_of", cheap)
    with pytest.raises(VerificationError):
        second_opinion.recompute_history(book.written)
