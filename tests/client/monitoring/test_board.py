"""The board over a real connection, fed by the gateway's own feed: who may read it, and what it says."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedtwin_client.ingest.feed import Feed
from fedtwin_client.monitoring.board import FRESH, WardWatch
from fedtwin_client.monitoring.board_api import board_served, make_api
from fedtwin_client.monitoring.board_view import draw_spark, render_board
from fedtwin_client.monitoring.watch_cli import ask_board
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, make_batch
from fedtwin_shared.cli import main
from fedtwin_shared.errors import EXIT_BAD_INPUT, FedtwinError

MINUTE = 60_000
START = 1_700_000_000_000
TOKEN = "a token of a test, of more than 32 characters"


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


def batch(minute: int) -> ObservationBatch:
    """Two patients: one falls into shock, the other does not."""
    falling = max(58.0, 88.0 - max(0, minute - 30))
    values = [88.0, falling, 97.0, 97.0]
    signals = ["mean_pressure", "mean_pressure", "pulse_oximetry", "pulse_oximetry"]
    noise = np.random.default_rng(minute).normal(0, 0.5, 4)
    return make_batch(
        patients=["well", "ill"],
        devices=["monitor"],
        patient=[0, 1, 0, 1],
        signal=[SIGNAL_KEYS.index(signal) for signal in signals],
        time=[START + minute * MINUTE] * 4,
        value=np.array(values) + noise,
        device=[0] * 4,
        sequence=[minute] * 4,
        quality=[0] * 4,
    )


@pytest.fixture(scope="module")
def ward() -> Iterator[tuple[WardWatch, Clock, str]]:
    clock = Clock()
    watch = WardWatch(clock=clock)
    feed = Feed([watch])
    feed.start()
    for minute in range(75):
        clock.now = START + minute * MINUTE
        feed.offer(batch(minute))
        while feed._queue.qsize():  # the clock of a test waits for the feed; the gateway's does not
            time.sleep(0.001)
    feed.stop()
    assert feed.failures == 0
    with board_served(watch, token=TOKEN) as port:
        yield watch, clock, f"http://127.0.0.1:{port}"


def ask(url: str, *, token: str = TOKEN, method: str = "GET") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as err:
        with err:
            return err.code, json.loads(err.read() or b"{}")


def test_the_ill_stand_first_with_reasons_and_every_reading_with_its_age(ward: tuple[WardWatch, Clock, str]) -> None:
    _, clock, url = ward
    clock.now += 2 * MINUTE + FRESH
    status, board = ask(f"{url}/v1/board")
    assert status == 200
    ill, well = board["lines"]
    assert (ill["patient"], ill["priority"]) == ("ill", "high")
    assert any(alert["words"].endswith("below 65") for alert in ill["alerts"])
    assert (well["patient"], well["priority"], well["alerts"]) == ("well", "", [])
    ages = {reading["signal"]: reading["age"] for reading in ill["readings"]}
    assert ages == {"mean_pressure": 2 * MINUTE + FRESH, "pulse_oximetry": 2 * MINUTE + FRESH}
    assert board["missed"] == 0


def test_the_twins_numbers_have_age_and_interval(ward: tuple[WardWatch, Clock, str]) -> None:
    _, _, url = ward
    status, page = ask(f"{url}/v1/patients/ill")
    assert status == 200
    pressure = [one for one in page["expected"] if one["signal"] == "mean_pressure"]
    assert [one["minutes"] for one in pressure] == [0.0, 30.0, 60.0]
    for one in page["expected"]:
        assert one["low"] < one["middle"] < one["high"]
        assert one["age"] >= 0
    assert page["counts"]["used"] == 150
    assert len(page["version"]) == 16
    assert ask(f"{url}/v1/patients/nobody")[0] == 404


def test_only_who_has_the_token_reads_and_nobody_writes(ward: tuple[WardWatch, Clock, str]) -> None:
    watch, _, url = ward
    for path in ("/v1/board", "/v1/patients/ill", "/v1/cds-services"):
        assert ask(url + path)[0] == 200
        assert ask(url + path, token="another")[0] == 401
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert ask(url + path, method=method)[0] in (401, 405)
    with pytest.raises(ValueError, match="32"):
        make_api(watch, token="short")


def test_an_acknowledged_or_forgotten_patient_shows_at_once(ward: tuple[WardWatch, Clock, str]) -> None:
    watch, _, url = ward
    watch.acknowledge("ill", by="nurse")
    assert ask(f"{url}/v1/board")[1]["lines"][0]["stage"] == "acknowledged"
    watch.forget("well")
    assert [line["patient"] for line in ask(f"{url}/v1/board")[1]["lines"]] == ["ill"]
    assert watch.page("well") is None


def test_the_board_is_a_table_with_sparklines(ward: tuple[WardWatch, Clock, str]) -> None:
    _, _, url = ward
    board = ask(f"{url}/v1/board")[1]
    board["lines"][0]["patient"] = "ill\x1b[2J"
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(render_board(board, {("ill\x1b[2J", "mean_pressure"): [80.0, 70.0, 60.0]}))
    shown = capture.get()
    assert "below 65" in shown
    assert "█▅▁" in shown
    assert "\x1b" not in shown
    assert draw_spark([5, 5]) == "▁▁"
    assert draw_spark([]) == ""


def test_the_board_is_watched_from_a_terminal(
    ward: tuple[WardWatch, Clock, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, url = ward
    token = tmp_path / "board.token"
    token.write_text(TOKEN)
    token.chmod(0o600)

    def watch() -> object:
        with pytest.raises(SystemExit) as ended:
            main(["client", "watch", "--url", url, "--token-file", str(token), "--once"])
        return ended.value.code

    assert watch() == 0
    assert "high" in capsys.readouterr().out
    token.chmod(0o644)
    assert watch() == EXIT_BAD_INPUT
    assert "only its owner" in " ".join(capsys.readouterr().err.split())
    token.unlink()
    assert watch() == EXIT_BAD_INPUT
    assert "the board's token" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(FedtwinError, match="401"):
        ask_board(url, "another")
    with pytest.raises(FedtwinError, match="http"):
        ask_board("file:///etc", TOKEN)
