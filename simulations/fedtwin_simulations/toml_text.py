"""TOML of a document of tables, lists, texts and numbers: what `tomllib` reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def write_toml(document: Mapping[str, Any]) -> str:
    """Return the document: plain values first, then one table for each mapping; deeper ones are inline.

    Raises `TypeError` for anything that TOML does not have.

    >>> print(write_toml({"name": "a", "model": {"sizes": [1, 2.5], "deep": {"on": True}}}))
    name = "a"
    <BLANKLINE>
    [model]
    sizes = [1, 2.5]
    deep = { on = true }
    <BLANKLINE>
    """
    lines = [_line(key, value) for key, value in document.items() if not isinstance(value, Mapping)]
    for key, table in document.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(key)}]", *(_line(name, value) for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object) -> str:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        rows = "".join(f"  {_value(item)},\n" for item in value)
        return f"{_key(key)} = [\n{rows}]"
    return f"{_key(key)} = {_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _text(key)


def _text(value: str) -> str:
    # JSON's escapes are a subset of TOML's, but for the delete character, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
