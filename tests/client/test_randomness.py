"""A hospital's chance cannot be repeated, by anybody."""

from __future__ import annotations

import os

import pytest
import torch

from fedtwin_client.randomness import Randomness, SystemRandomness


def test_every_generator_is_another_one() -> None:
    source: Randomness = SystemRandomness()
    seeds = {source.generator().initial_seed() for _ in range(200)}
    assert len(seeds) == 200
    first, second = (torch.randn(1000, generator=source.generator()) for _ in range(2))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.2


def test_all_64_bits_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (bytes(8), b"\xff" * 8, b"\x80" + bytes(7)):
        monkeypatch.setattr(os, "urandom", lambda size, given=given: given[:size])
        assert SystemRandomness().generator().initial_seed() % 2**64 == int.from_bytes(given, "big")


def test_torchs_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    SystemRandomness().generator()
    assert torch.equal(torch.get_rng_state(), before)
