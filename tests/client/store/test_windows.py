"""Training windows agree with the study's own statistics, and the cache forgets with the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import Quality, make_batch
from fedtwin_client.series import Cells, Series
from fedtwin_client.store.block_store import BlockStore, open_store
from fedtwin_client.store.windows import WindowCache, WindowShape, build_windows
from fedtwin_shared.signal import SIGNALS, normalise
from tests.contracts.store_contract import START, batch_of, stay

SHAPE = WindowShape(windows=3, steps=4, step=60_000, signals=("glucose", "heart_rate"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockStore]:
    with open_store(tmp_path) as store:
        yield store


def test_a_step_is_the_mean_that_a_study_uses() -> None:
    chance = np.random.default_rng(3)
    signals = [SIGNAL_KEYS.index(key) for key in ("heart_rate", "glucose", "temperature")]
    size = 60
    batch = make_batch(
        patients=("Ada",),
        devices=("monitor",),
        patient=np.zeros(size),
        signal=chance.choice(signals, size),
        time=np.sort(START + chance.integers(-60_000, 15 * 60_000, size)),
        value=chance.uniform(10, 299, size),
        device=np.zeros(size),
        sequence=np.arange(size),
        quality=np.zeros(size),
    )
    x, mask = build_windows(batch, START, SHAPE)
    for column, key in enumerate(SHAPE.signals):
        rows = np.flatnonzero(
            (batch.signal == SIGNAL_KEYS.index(key)) & (batch.time >= START) & (batch.time < START + 12 * 60_000)
        )
        since = batch.time[rows] - START
        series = Series(
            patient=np.zeros(len(rows), np.int64),
            step=since // 60_000,
            hour=since % 60_000 / 3_600_000,
            z=normalise(SIGNALS[key], batch.value[rows]),
            usual=1.0,
        )
        value, known = Cells(series, patients=1, steps=12).statistic("mean", step_hours=1 / 60)
        assert np.array_equal(mask[..., column].reshape(-1), known[0])
        assert np.allclose(x[..., column].reshape(-1), value[0], atol=1e-6)
    assert mask.any()
    assert not mask.all()


def test_what_a_device_calls_invalid_is_not_used() -> None:
    batch = batch_of([("Ada", "heart_rate", START, 106.0, "m", 1, 0), ("Ada", "heart_rate", START, 300.0, "m", 2, 0)])
    x, _ = build_windows(replace(batch, quality=np.array([0, Quality.INVALID], np.uint8)), START, SHAPE)
    assert x[0, 0].tolist() == [0, 1]


def test_the_cache_gives_what_the_store_holds_now(store: BlockStore) -> None:
    cache, starts = WindowCache(store, SHAPE), {"Bo": START, "Ada": START}
    rows = stay("Ada", count=400) + stay("Bo", count=400)
    store.append(batch_of(rows))
    first = cache.build(starts)
    assert first.patients == ("Ada", "Bo")
    assert first.mask[:, :, :, 1].sum() == 2 * 7
    assert len(cache) == 2
    store.append(batch_of(stay("Ada", count=100, first=400)))
    assert len(cache) == 1
    again = cache.build(starts)
    assert again.mask[:, :, :, 1].sum() == 7 + 9
    fresh = WindowCache(store, SHAPE).build(starts)
    assert np.array_equal(again.x, fresh.x)
    assert np.array_equal(again.x[1], first.x[1])


def test_the_cache_is_purged_on_erasure(store: BlockStore) -> None:
    cache = WindowCache(store, SHAPE)
    store.append(batch_of(stay("Ada", count=400) + stay("Bo", count=400)))
    cache.build({"Ada": START, "Bo": START})
    store.forget("Ada")
    assert len(cache) == 1
    built = cache.build({"Ada": START, "Bo": START})
    assert not built.mask[0].any()
    assert not built.x[0].any()
    store.drop_before(START * 2)
    assert not cache.build({"Bo": START}).mask.any()


def test_what_is_erased_while_it_is_read_does_not_enter_the_cache(store: BlockStore) -> None:
    cache = WindowCache(store, SHAPE)
    store.append(batch_of(stay("Ada", count=400)))
    read = store.read

    def read_then_forget(patient: str, *, since: int | None = None, until: int | None = None) -> object:
        batch = read(patient, since=since, until=until)
        store.forget(patient)
        return batch

    store.read = read_then_forget  # type: ignore[method-assign, assignment] # the one instant that matters
    cache.build({"Ada": START})
    assert len(cache) == 0


@pytest.mark.parametrize("change", [{"windows": 0}, {"step": -1}, {"limit": float("nan")}, {"signals": ("nothing",)}])
def test_a_shape_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(SHAPE, **change)  # type: ignore[arg-type] # one field of any type
