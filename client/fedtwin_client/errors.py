"""What a bad world looks like inside a hospital."""

from __future__ import annotations

from fedtwin_shared.errors import FedtwinError


class DataError(FedtwinError):
    """A hospital's data file cannot be read, or lacks what a study needs; raised before anything is spent."""
