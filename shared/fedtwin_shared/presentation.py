"""How the auditor's commands read a file and show what they found: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

from fedtwin_shared.errors import ConfigurationError

EXIT_DOES_NOT_HOLD: Final = 1


def read_evidence(file: Path) -> bytes:
    """Return a file's bytes. Raises `ConfigurationError` where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as err:
        raise ConfigurationError(file=file, expected="a readable file", found=err.strerror or "none") from err


def show_statement(statement: Mapping[str, object], *, title: str, as_json: bool) -> None:
    """Print a statement, field by field."""
    if as_json:
        show_json(statement)
        return
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest that is cut compares with nothing
    for name, value in statement.items():
        table.add_row(name, _describe(value))
    Console(markup=False, highlight=False).print(table)


def show_json(document: object) -> None:
    """Print JSON with sorted names, in ASCII: the same on every terminal."""
    typer.echo(json.dumps(document, indent=2, sort_keys=True))


def show_failures(name: str, failures: Sequence[str], *, as_json: bool) -> None:
    """Print what failed, as a list numbered from 1."""
    if as_json:
        show_json({"holds": False, "failed": list(failures)})
        return
    typer.echo(f"{name}: does not hold")
    for number, line in enumerate(failures, start=1):
        typer.echo(f"{number}. {line}")


def _describe(value: object) -> str:
    """A value in a cell: one line for each part of it."""
    match value:
        case str():
            return value
        case Mapping():
            return "\n".join(f"{name}: {_in_line(part)}" for name, part in value.items()) or "none"
        case list() | tuple():
            return "\n".join(map(_in_line, value)) or "none"
        case _:
            return json.dumps(value)


def _in_line(value: object) -> str:
    match value:
        case str():
            return value
        case Mapping():
            return ", ".join(f"{name} {_in_line(part)}" for name, part in value.items())
        case _:
            return json.dumps(value, ensure_ascii=False)
