"""What a parser returns for one message of FHIR, SenML or the packed form."""

from __future__ import annotations

import msgspec

from fedtwin_client.ingest.records import Record


class Document(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`rows` of the draft are this message's own; `refused`: fixed words why nothing of it was taken, or empty.

    - a refused message left no row and no record
    """

    rows: int = 0
    records: tuple[Record, ...] = ()
    refused: str = ""


TOO_LARGE = Document(refused="message too large")
UNREADABLE = Document(refused="message unreadable")
UNSUPPORTED_VERSION = Document(refused="version not supported")
