"""What a bad world looks like: one base error that says where, what was expected and what was found.

Design note: an expected "no" of a hospital is a value (`fedtwin_shared.round.Refusal`), a programmer's mistake is
`RuntimeError`, `TypeError` or `ValueError`, and everything else that the outside world got wrong is a `FedtwinError`.
A message never holds a patient value: what was *found* in a data file is described, not quoted.
"""

from __future__ import annotations

from pathlib import Path

EXIT_BAD_INPUT = 2  # the exit code of every command that was given a malformed file


class FedtwinError(Exception):
    """A file, message or machine that is not as it must be.

    >>> print(FedtwinError(file="study.toml", field="training.rounds", expected="at least 1", found="0"))
    study.toml: training.rounds: expected at least 1, found 0
    """

    def __init__(self, *, file: str | Path = "", field: str = "", expected: str, found: str) -> None:
        self.file = str(file)
        self.field = field
        self.expected = expected
        self.found = found
        where = "".join(f"{part}: " for part in (self.file, field) if part)
        super().__init__(f"{where}expected {expected}, found {found}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are unpickled from their message alone, which would kill the pool whose worker raised this one.
        return _rebuild, (type(self), self.file, self.field, self.expected, self.found)


class ConfigurationError(FedtwinError):
    """A study, roster or configuration file that a person wrote is malformed."""


class VerificationError(FedtwinError):
    """A signed document does not verify: signature, signer, digest, form or contents."""


def _rebuild(kind: type[FedtwinError], file: str, field: str, expected: str, found: str) -> FedtwinError:
    return kind(file=file, field=field, expected=expected, found=found)
