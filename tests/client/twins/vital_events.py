"""Events of imaginary patients for the twin's tests: readings near the prior, artefacts, gaps, inputs, predictions."""

from __future__ import annotations

import numpy as np

from fedtwin_client.twins.block import Block
from fedtwin_client.twins.circulation import CIRCULATION
from fedtwin_client.twins.filter import Events
from fedtwin_client.twins.glucose import GLUCOSE
from fedtwin_client.twins.respiration import RESPIRATION
from fedtwin_client.twins.temperature import TEMPERATURE

BLOCKS = (GLUCOSE, CIRCULATION, RESPIRATION, TEMPERATURE)


def make_events(block: Block, *, patients: int, count: int, seed: int, artefacts: float = 0.1) -> Events:
    generator = np.random.default_rng(seed)
    channel = generator.integers(0, len(block.channels) + 1, count)
    usual = block.tables.weights[channel] @ block.prior(1)[0, : block.tables.n]
    spread = 0.1 * usual if block is GLUCOSE else np.full(count, 0.05, np.float32)
    value = (usual + spread * generator.standard_normal(count)).astype(np.float32)
    value[generator.random(count) < artefacts] *= 3
    value[generator.random(count) < 0.05] = np.nan
    given = (generator.random(count) < 0.05) & (block.tables.m > block.tables.n)
    return Events(
        row=generator.integers(0, patients, count),
        time=np.sort(generator.integers(0, 86_400_000, count)),
        channel=channel,
        value=value,
        variance=np.asarray(np.maximum(spread, 0.01) ** 2, np.float32),
        jump=np.where(given, block.tables.m - 1, -1),
        keep=np.ones(count, np.float32),
        amount=np.full(count, 3.0, np.float32),
    )
