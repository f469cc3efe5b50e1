"""TOML that is written is TOML that is read back."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_simulations.toml_text import write_toml

keys = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
scalars = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | keys
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(keys, values, max_size=6))
def test_what_is_written_is_read_back(document: dict[str, object]) -> None:
    assert tomllib.loads(write_toml(document)) == document


@pytest.mark.parametrize("value", [None, object(), b"bytes"])
def test_what_toml_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        write_toml({"key": value})
