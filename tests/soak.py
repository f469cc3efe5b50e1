"""Long campaigns run under `make soak` only; a bounded share of most of them runs in `make test`."""

from __future__ import annotations

import os
from typing import Final

import pytest

SOAK: Final = os.environ.get("FEDTWIN_SOAK") == "1"


def only_in_soak(what: str) -> pytest.MarkDecorator:
    """Skip a test in `make test`; `what` it would take stands in the reason."""
    return pytest.mark.skipif(not SOAK, reason=f"{what}: make soak")
