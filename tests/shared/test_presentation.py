"""What the auditor's commands show: whole, as it is, and the same on every terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.presentation import read_evidence, show_failures, show_statement

STATEMENT = {
    "words": "[/bold] as it is",
    "digest": "0123456789abcdef" * 8,
    "parts": {"epsilon": "8", "deep": {"a": 1, "b": None}},
    "list": ["one", {"two": 2}],
    "nothing": {},
    "holds": True,
}


def test_a_statement_is_shown_whole_and_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_statement(STATEMENT, title="file", as_json=False)
    shown = capsys.readouterr().out
    cells = [line.split("│")[2].strip() for line in shown.splitlines() if "│" in line]
    assert "".join(cells).startswith(f"{STATEMENT['words']}{STATEMENT['digest']}")
    assert cells[-6:] == ["epsilon: 8", "deep: a 1, b null", "one", "two 2", "none", "true"]


def test_json_is_what_was_stated(capsys: pytest.CaptureFixture[str]) -> None:
    show_statement(STATEMENT, title="file", as_json=True)
    assert json.loads(capsys.readouterr().out) == STATEMENT


def test_failures_are_numbered_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_failures("bundle.zip", ["a", "ε"], as_json=False)
    assert capsys.readouterr().out == "bundle.zip: does not hold\n1. a\n2. ε\n"
    show_failures("bundle.zip", ["a"], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"holds": False, "failed": ["a"]}


def test_a_file_that_cannot_be_read_is_our_own_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="absent: expected a readable file"):
        read_evidence(tmp_path / "absent")
