from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.merkle import (
    EMPTY_ROOT,
    complete_subtrees,
    compute_root,
    hash_children,
    hash_leaf,
    prove_consistency,
    prove_inclusion,
    stored_root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ledger" / "rfc6962.json").read_text(encoding="utf-8"))
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]


def naive_root(entries: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    split = naive_split(len(entries))
    return hashlib.sha256(b"\x01" + naive_root(entries[:split]) + naive_root(entries[split:])).digest()


def naive_split(count: int) -> int:
    split = 1
    while split * 2 < count:
        split *= 2
    return split


def naive_path(index: int, entries: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1."""
    if len(entries) == 1:
        return []
    split = naive_split(len(entries))
    if index < split:
        return [*naive_path(index, entries[:split]), naive_root(entries[split:])]
    return [*naive_path(index - split, entries[split:]), naive_root(entries[:split])]


def naive_proof(old: int, entries: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """RFC 6962 §2.1.2, SUBPROOF."""
    if old == len(entries):
        return [] if whole else [naive_root(entries)]
    split = naive_split(len(entries))
    if old <= split:
        return [*naive_proof(old, entries[:split], whole), naive_root(entries[split:])]
    return [*naive_proof(old - split, entries[split:], False), naive_root(entries[:split])]


class Stored:
    """The complete subtrees of some entries, as a log stores them."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        for index, entry in enumerate(entries):
            for level, place, value in complete_subtrees(index, hash_leaf(entry), self.node):
                self.nodes[level, place] = value

    def node(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]


def entries_of(size: int) -> list[bytes]:
    return [b"entry %d" % index for index in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_that_certificate_transparency_publishes(size: int) -> None:
    assert compute_root(LEAVES[:size]) == ROOTS[size]
    assert stored_root(size, Stored(LEAVES[:size]).node) == ROOTS[size]


def test_the_consistency_proof_is_the_published_one() -> None:
    case = VECTORS["consistency"]
    proof = tuple(bytes.fromhex(value) for value in case["proof"])
    assert prove_consistency(case["old"], case["size"], Stored(LEAVES).node) == proof
    verify_consistency(
        old=case["old"], old_root=ROOTS[case["old"]], size=case["size"], root=ROOTS[case["size"]], proof=proof
    )


def test_every_small_tree_agrees_with_the_definition() -> None:
    for size in range(1, 34):
        entries = entries_of(size)
        node, root = Stored(entries).node, naive_root(entries)
        assert compute_root(entries) == stored_root(size, node) == root
        for index in range(size):
            proof = prove_inclusion(index, size, node)
            assert list(proof) == naive_path(index, entries)
            verify_inclusion(hash_leaf(entries[index]), index=index, size=size, proof=proof, root=root)
        for old in range(1, size + 1):
            steps = prove_consistency(old, size, node)
            assert list(steps) == naive_proof(old, entries)
            verify_consistency(old=old, old_root=naive_root(entries[:old]), size=size, root=root, proof=steps)


@given(st.integers(1, 300), st.data())
def test_an_inclusion_proof_proves_one_leaf_at_one_place_and_nothing_else(size: int, data: st.DataObject) -> None:
    entries = entries_of(size)
    index = data.draw(st.integers(0, size - 1))
    node, root = Stored(entries).node, compute_root(entries)
    proof = prove_inclusion(index, size, node)
    leaf = hash_leaf(entries[index])
    verify_inclusion(leaf, index=index, size=size, proof=proof, root=root)
    wrong = data.draw(st.sampled_from(["leaf", "index", "longer", "root", *(["hash", "shorter"] if proof else [])]))
    other = data.draw(st.integers(-1, size + 1).filter(lambda value: value != index))
    bit = data.draw(st.integers(0, 8 * 32 * max(1, len(proof)) - 1))
    flipped = flip(b"".join(proof) or bytes(32), bit)
    parts = tuple(flipped[place : place + 32] for place in range(0, len(flipped), 32))
    changed = {
        "leaf": (hash_leaf(b"another"), index, proof, root),
        "index": (leaf, other, proof, root),
        "longer": (leaf, index, (*proof, root), root),
        "shorter": (leaf, index, proof[:-1], root),
        "hash": (leaf, index, parts, root),
        "root": (leaf, index, proof, flip(root, bit % 256)),
    }[wrong]
    with pytest.raises(VerificationError):
        verify_inclusion(changed[0], index=changed[1], size=size, proof=changed[2], root=changed[3])


@given(st.integers(1, 300), st.data())
def test_a_consistency_proof_shows_that_nothing_old_changed(size: int, data: st.DataObject) -> None:
    entries = entries_of(size)
    old = data.draw(st.integers(0, size))
    node, root = Stored(entries).node, compute_root(entries)
    proof = prove_consistency(old, size, node)
    verify_consistency(old=old, old_root=compute_root(entries[:old]), size=size, root=root, proof=proof)
    if old == 0:
        return
    edited = list(entries)
    edited[data.draw(st.integers(0, old - 1))] = b"edited"
    forged = Stored(edited)
    with pytest.raises(VerificationError):
        verify_consistency(
            old=old,
            old_root=compute_root(entries[:old]),
            size=size,
            root=compute_root(edited),
            proof=prove_consistency(old, size, forged.node),
        )


@pytest.mark.parametrize("wrong", ["longer", "shorter", "empty", "bytes", "shrunk", "old_root", "root"])
def test_a_malformed_consistency_proof_is_refused(wrong: str) -> None:
    entries = entries_of(11)
    proof = prove_consistency(6, 11, Stored(entries).node)
    given_proof, old, size = proof, 6, 11
    old_root, root = compute_root(entries[:6]), compute_root(entries)
    match wrong:
        case "longer":
            given_proof = (*proof, root)
        case "shorter":
            given_proof = proof[:-1]
        case "empty":
            given_proof = ()
        case "bytes":
            given_proof = (proof[0][:-1], *proof[1:])
        case "shrunk":
            old, size = 11, 6
        case "old_root":
            old_root = EMPTY_ROOT
        case "root":
            root = EMPTY_ROOT
    with pytest.raises(VerificationError):
        verify_consistency(old=old, old_root=old_root, size=size, root=root, proof=given_proof)


def test_nothing_is_proven_by_what_needs_no_proof() -> None:
    root = compute_root(entries_of(4))
    with pytest.raises(VerificationError):
        verify_consistency(old=4, old_root=root, size=4, root=root, proof=(root,))
    with pytest.raises(VerificationError):
        verify_consistency(old=4, old_root=EMPTY_ROOT, size=4, root=root, proof=())
    with pytest.raises(VerificationError):
        verify_consistency(old=0, old_root=root, size=4, root=root, proof=())


def test_a_proof_is_logarithmic() -> None:
    node = Stored(entries_of(1000)).node
    assert max(len(prove_inclusion(index, 1000, node)) for index in range(1000)) == 10
    assert max(len(prove_consistency(old, 1000, node)) for old in range(1, 1000)) <= 11


def test_a_leaf_is_not_a_node() -> None:
    # RFC 6962 §2.1: without the prefixes, a tree of two leaves would be one leaf with their hashes in it
    left, right = hash_leaf(b"a"), hash_leaf(b"b")
    assert hash_leaf(left + right) != hash_children(left, right)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_an_inner_node_is_not_proven_to_be_a_leaf() -> None:
    # Its hash and the upper part of a leaf's path lead to the true root; only the length of the path tells.
    entries = entries_of(4)
    node, root = Stored(entries).node, compute_root(entries)
    upper = prove_inclusion(0, 4, node)[1:]
    with pytest.raises(VerificationError, match="too short"):
        verify_inclusion(node(1, 0), index=0, size=4, proof=upper, root=root)
