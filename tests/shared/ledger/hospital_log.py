"""A hospital's log and its witnesses in memory, for tests that need an honest one to attack."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.ledger.merkle import complete_subtrees, compute_root, hash_leaf, prove_consistency
from fedtwin_shared.ledger.note import Checkpoint, format_note, make_verifier_key, sign_note
from fedtwin_shared.ledger.witness import AddCheckpoint

LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"log key, public by being in here")
LOG = make_verifier_key("north.example/ledger", LOG_KEY)
LOGS = {LOG.name: LOG}


def entries_of(size: int, *, story: str = "true") -> list[bytes]:
    return [b"%s entry %d" % (story.encode(), index) for index in range(size)]


def signed_note(entries: Sequence[bytes], *, key: Ed25519PrivateKey = LOG_KEY, origin: str = LOG.name) -> bytes:
    text = Checkpoint(origin=origin, size=len(entries), root=compute_root(entries)).text
    return format_note(text, [sign_note(text, name=origin, key=key)])


def request(entries: Sequence[bytes], *, old: int, key: Ed25519PrivateKey = LOG_KEY) -> bytes:
    nodes: dict[tuple[int, int], bytes] = {}
    for index, entry in enumerate(entries):
        for level, place, value in complete_subtrees(index, hash_leaf(entry), lambda a, b: nodes[a, b]):
            nodes[level, place] = value
    proof = prove_consistency(min(old, len(entries)), len(entries), lambda a, b: nodes[a, b])
    return AddCheckpoint(old_size=old, proof=proof, note=signed_note(entries, key=key)).encode()
