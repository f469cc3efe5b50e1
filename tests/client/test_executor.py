"""The executor against Flower's own Runtime API on a real socket: each guarantee by name."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedtwin_client.executor import (
    FAILURE,
    STOPPED,
    BundleRefusedError,
    Handler,
    TaskRecord,
    describe_failure,
    execute_tasks,
    verify_bundle,
)
from fedtwin_shared.supervision import SupervisionError, wait_until
from tests.authority import free_ports, write_private
from tests.client.runtime_server import RuntimeServer

BUNDLE = b"the bundle that this site allows"
ALLOWED = frozenset({hashlib.sha256(BUNDLE).hexdigest()})
PATIENT_VALUE = "heart rate 900"


def question(number: int = 21) -> RecordDict:
    return RecordDict({"toy": ConfigRecord({"number": number})})


def number_in(message: Message, name: str) -> object:
    record = message.content["toy"]
    assert isinstance(record, ConfigRecord)
    return record[name]


def double(message: Message, context: Context) -> Message:
    number = number_in(message, "number")
    assert isinstance(number, int)
    return Message(RecordDict({"toy": ConfigRecord({"double": 2 * number})}), reply_to=message)


def refuse(message: Message) -> Message:
    return Message(RecordDict({"toy": ConfigRecord({"refusal": "bundle-unknown"})}), reply_to=message)


@contextmanager
def executing(
    address: str,
    app: Handler = double,
    *,
    refuse: Callable[[Message], Message] = refuse,
    allowed: frozenset[str] = ALLOWED,
    secret_file: Path | None = None,
) -> Iterator[list[TaskRecord]]:
    """An executor in a thread; what it noted about its tasks."""
    stop, records = threading.Event(), list[TaskRecord]()
    thread = threading.Thread(
        target=execute_tasks,
        args=(address, app),
        kwargs={
            "allowed_bundles": allowed,
            "refuse": refuse,
            "stop": stop,
            "secret_file": secret_file,
            "on_task": records.append,
        },
    )
    thread.start()
    try:
        yield records
    finally:
        before = time.monotonic()
        stop.set()
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert time.monotonic() - before < 1.0, "the executor returns within a second of stop"


@pytest.fixture
def server() -> Iterator[RuntimeServer]:
    (port,) = free_ports(1)
    with RuntimeServer(port) as running:
        yield running


def wait_for(records: list[TaskRecord], count: int = 1) -> None:
    wait_until(lambda: len(records) >= count, what="task records", deadline_seconds=15, interval_seconds=0.02)


def test_the_installed_app_answers_and_the_task_is_completed(server: RuntimeServer) -> None:
    with executing(server.address) as records:
        identity = server.give(question(), BUNDLE)
        reply, _ = server.reply()
        wait_for(records)
    assert number_in(reply, "double") == 42
    assert reply.metadata.reply_to_message_id == identity
    assert [(record.outcome, record.message_type) for record in records] == [("completed", "query")]
    assert records[0].bundle_digest in ALLOWED
    assert server.task_statuses() == [("finished", "completed", "")]


def hostile_bundle(marker: Path) -> bytes:
    """A bundle whose every file, imported or run, would leave a mark."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("pyproject.toml", '[project]\nname = "fedtwin"\n')
        for name in ("fedtwin_client/__init__.py", "fedtwin_client/client_app.py", "sitecustomize.py", "setup.py"):
            bundle.writestr(name, code)
    return buffer.getvalue()


def test_only_the_app_runs_and_the_bundle_is_never_unpacked_nor_on_sys_path(
    server: RuntimeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, marker, home = hostile_bundle(tmp_path / "mark"), tmp_path / "mark", tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.chdir(home)
    path, modules = list(sys.path), set(sys.modules)
    # Allowed on purpose: even a bundle that a site was talked into allowing brings no code in.
    allowed = frozenset({hashlib.sha256(bundle).hexdigest()})
    with executing(server.address, allowed=allowed) as records:
        server.give(question(), bundle)
        reply, _ = server.reply()
        wait_for(records)
    assert number_in(reply, "double") == 42
    assert not marker.exists()
    assert list(home.rglob("*")) == []
    assert sys.path == path
    assert not {
        name
        for name in set(sys.modules) - modules
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path))
    }


def test_a_bundle_that_is_not_on_the_allow_list_is_refused_and_the_app_does_not_see_the_message(
    server: RuntimeServer, tmp_path: Path
) -> None:
    called: list[Message] = []

    def note(message: Message, context: Context) -> Message:
        called.append(message)
        return double(message, context)

    with executing(server.address, note) as records:
        server.give(question(), hostile_bundle(tmp_path / "mark"))
        reply, _ = server.reply()
        wait_for(records)
    assert number_in(reply, "refusal") == "bundle-unknown"
    assert not reply.has_error()
    assert called == []
    assert not (tmp_path / "mark").exists()
    assert [record.outcome for record in records] == ["refused"]


class LeakyError(Exception):
    """An exception whose text and cause hold what must stay."""


def fail(message: Message, context: Context) -> Message:
    try:
        raise ValueError(PATIENT_VALUE)
    except ValueError as error:
        raise LeakyError(PATIENT_VALUE, {"patient": PATIENT_VALUE}) from error


def leave(message: Message, context: Context) -> Message:
    raise SystemExit(PATIENT_VALUE)


def wrong(message: Message, context: Context) -> Message:
    return PATIENT_VALUE  # type: ignore[return-value]  # an app that breaks its promise


@pytest.mark.parametrize("app", [fail, leave, wrong])
def test_an_exception_leaves_the_site_as_one_fixed_code_and_text(
    server: RuntimeServer, app: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with executing(server.address, app) as records:
        server.give(question(), BUNDLE)
        reply, everything = server.reply()
        wait_for(records)
        server.give(question(), BUNDLE)  # and the executor still serves
        server.reply()
    assert (reply.error.code, reply.error.reason) == (FAILURE.code, FAILURE.reason)
    assert PATIENT_VALUE.encode() not in everything
    assert PATIENT_VALUE not in caplog.text
    assert PATIENT_VALUE not in repr(records)
    assert PATIENT_VALUE not in repr(server.task_statuses())
    assert records[0].outcome == "failed"


def test_an_exception_in_refuse_leaves_the_site_the_same_way(server: RuntimeServer) -> None:
    def broken(message: Message) -> Message:
        raise ValueError(PATIENT_VALUE)

    with executing(server.address, refuse=broken) as records:
        server.give(question(), b"another bundle")
        reply, everything = server.reply()
        wait_for(records)
    assert (reply.error.code, reply.error.reason) == (FAILURE.code, FAILURE.reason)
    assert PATIENT_VALUE.encode() not in everything


def test_a_supernode_that_is_away_or_restarts_is_waited_for() -> None:
    (port,) = free_ports(1)
    with executing(f"127.0.0.1:{port}") as records:
        time.sleep(0.5)
        for round_ in (1, 2):
            with RuntimeServer(port) as server:
                server.give(question(), BUNDLE)
                reply, _ = server.reply()
                assert number_in(reply, "double") == 42
                wait_for(records, round_)
    assert [record.outcome for record in records] == ["completed", "completed"]


def test_a_task_that_the_supernode_has_forgotten_is_abandoned() -> None:
    (port,) = free_ports(1)
    entered, release = threading.Event(), threading.Event()

    def slow(message: Message, context: Context) -> Message:
        entered.set()
        assert release.wait(20)
        return double(message, context)

    with executing(f"127.0.0.1:{port}", slow) as records:
        with RuntimeServer(port) as first:
            first.give(question(), BUNDLE)
            assert entered.wait(10)
        with RuntimeServer(port) as second:  # knows neither the task nor its token
            release.set()
            wait_for(records)
            second.give(question(), BUNDLE)
            reply, _ = second.reply()
            assert number_in(reply, "double") == 42
            wait_for(records, 2)
    assert [record.outcome for record in records] == ["abandoned", "completed"]


def test_a_stop_during_a_task_returns_within_a_second_and_tells_the_supernode(server: RuntimeServer) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(message: Message, context: Context) -> Message:
        entered.set()
        release.wait(20)
        return double(message, context)

    try:
        with executing(server.address, slow) as records:
            server.give(question(), BUNDLE)
            assert entered.wait(10)
        reply, _ = server.reply()
    finally:
        release.set()
    assert (reply.error.code, reply.error.reason) == (STOPPED.code, STOPPED.reason)
    assert [record.outcome for record in records] == ["abandoned"]


def test_objects_that_come_later_cost_no_second(server: RuntimeServer) -> None:
    with executing(server.address) as records:
        server.give(question(), BUNDLE)  # the first task also connects
        server.reply()
        wait_for(records)
        server.give(question(), BUNDLE, objects_after_seconds=0.2)
        server.reply()
        wait_for(records, 2)
    assert 0.1 < records[1].seconds < 0.75  # Flower's own wait is 0.8 to 1.2 seconds


def test_each_task_sees_a_fresh_context_and_leaves_none(server: RuntimeServer) -> None:
    def remember(message: Message, context: Context) -> Message:
        assert "left" not in context.state
        context.state["left"] = ConfigRecord({"behind": PATIENT_VALUE})
        return double(message, context)

    with executing(server.address, remember) as records:
        for _ in range(2):
            server.give(question(), BUNDLE)
            server.reply()
        wait_for(records, 2)
    assert [record.outcome for record in records] == ["completed", "completed"]


def test_with_a_secret_only_its_holder_takes_tasks(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    secret, other = tmp_path / "secret", tmp_path / "other"
    for path in (secret, other):
        write_private(path, os.urandom(32))
    with RuntimeServer(port, secret_file=secret) as server:
        server.give(question(), BUNDLE)
        for wrong in (None, other):
            with (
                executing(server.address, secret_file=wrong),
                pytest.raises(SupervisionError),
            ):
                server.reply(deadline_seconds=0.8)
        with executing(server.address, secret_file=secret):
            reply, _ = server.reply()
        assert number_in(reply, "double") == 42


def test_verify_bundle_refuses_by_default() -> None:
    digest = hashlib.sha256(BUNDLE).hexdigest()
    assert verify_bundle(BUNDLE, allowed_bundles=frozenset({digest})) == digest
    for allowed in (frozenset[str](), frozenset({"0" * 64}), frozenset({digest.upper()})):
        with pytest.raises(BundleRefusedError, match=digest):
            verify_bundle(BUNDLE, allowed_bundles=allowed)


def test_a_failure_is_described_by_type_and_own_line_never_by_text() -> None:
    try:
        verify_bundle(BUNDLE, allowed_bundles=frozenset())
    except BundleRefusedError as error:
        described = describe_failure(error)
    assert described.startswith("BundleRefusedError at executor.py:")
    assert "sha" not in described
    assert describe_failure(KeyError(PATIENT_VALUE)) == "KeyError"
