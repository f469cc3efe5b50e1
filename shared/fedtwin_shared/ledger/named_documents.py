"""What the documents of a verified bundle are: signed studies and results of conformance audits.

Design note: that an entry names a document by digest proves that the hospital recorded exactly these bytes; it does not
prove that what they say is true. A document's own signature is checked with the key that the document itself names, so
that key is part of what is shown, for the auditor to compare. What is neither kind, or does not verify, is left out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedtwin_shared.conformance_result import judge, verify_conformance
from fedtwin_shared.documents import SignedStudy, verify_study
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.ledger.entry import Enrolment


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDocuments:
    """Documents by the digest of their bytes. conformance: what was measured and judged anew, as JSON."""

    studies: Mapping[str, SignedStudy]
    conformance: Mapping[str, dict[str, Any]]

    def name_of(self, enrolment: Enrolment) -> str:
        """Return a study's name and version where the bundle has the study, else the start of its digest."""
        signed = self.studies.get(enrolment.plan)
        if signed is None or signed.study.digest != enrolment.study:
            return f"study {enrolment.study[:12]}"
        return f"{signed.study.name} version {signed.study.version}"


def read_documents(documents: Mapping[str, bytes]) -> NamedDocuments:
    """Return what a bundle's documents are. A document that is neither kind, or does not verify, is left out."""
    studies, conformance = dict[str, SignedStudy](), dict[str, dict[str, Any]]()
    for digest, content in documents.items():
        signer = signer_of(content)
        if signer is None:
            continue
        with contextlib.suppress(FedtwinError):
            studies[digest] = verify_study(content, coordinator=signer)
            continue
        try:
            conformance[digest] = _judge(content, signer)
        except Exception:  # a stranger's claim, and an accountant with limits of its own: it is not shown as judged
            continue
    return NamedDocuments(studies=studies, conformance=conformance)


def signer_of(content: bytes) -> str | None:
    """Return the public key that a document names as its first signer's; None: it names none."""
    try:
        signer = json.loads(content)["signatures"][0]["keyid"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return signer if isinstance(signer, str) else None


def _judge(content: bytes, signer: str) -> dict[str, Any]:
    result = verify_conformance(content, key=signer)
    verdict = judge(result)
    return {
        "site": result.site,
        "day": result.day,
        "engine": result.engine,
        "signed_by": signer,
        "as_claimed": verdict.passed,
        "against_it": list(verdict.failures),
        "epsilon_claimed": f"{verdict.epsilon:.3f}",
        "epsilon_lower_bound": f"{verdict.lower_bound:.3f}",
    }
