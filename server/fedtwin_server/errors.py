"""What can go wrong at the coordinator, beside the errors that every part shares."""

from __future__ import annotations

from fedtwin_shared.errors import FedtwinError


class ControlError(FedtwinError):
    """The SuperLink's Control API said no, or nothing that can be understood."""


class FrontError(FedtwinError):
    """The front cannot serve as configured."""


class RunError(FedtwinError):
    """A run cannot go on: too few sites answered in time, or its state is not what it must be."""
