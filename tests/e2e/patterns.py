"""Everything that a patient's record could look like on a wire: the needles of a search through traffic and logs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt


def text_forms(text: str) -> Iterator[bytes]:
    """Yield a text as UTF-8, UTF-16 (both orders), hexadecimal (both cases), base64 (at all three alignments)."""
    plain = text.encode()
    yield plain
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    yield plain.hex().encode()
    yield plain.hex().upper().encode()
    yield from base64_forms(plain)


def base64_forms(data: bytes) -> Iterator[bytes]:
    """Yield what of `data` survives in base64 whatever stands before and after it."""
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data)
        first = (0, 2, 3)[shift]  # characters that the bytes before it reach into
        last = len(encoded) - (4 if (len(data) + shift) % 3 else 0)
        yield encoded[first:last]


def number_forms(values: npt.NDArray[np.floating]) -> Iterator[bytes]:
    """Yield some neighbouring numbers as f32 and f64, both byte orders, and as text with commas and spaces."""
    for kind in ("<f4", ">f4", "<f8", ">f8"):
        raw = np.asarray(values).astype(kind).tobytes()
        yield raw
        yield from base64_forms(raw)
    for separator in (",", ", ", " "):
        yield separator.join(repr(float(value)) for value in values).encode()


def found_in(haystack: bytes, needles: Iterable[bytes]) -> list[bytes]:
    """Return the needles that occur; every one must be long enough not to occur by chance."""
    found = []
    for needle in needles:
        assert len(needle) >= 8, needle
        if needle in haystack:
            found.append(needle)
    return found
