"""The Merkle tree of RFC 6962: hashes, roots, inclusion and consistency proofs. Pure functions of bytes.

Design note: a proof is built from the hashes of complete subtrees, `node(level, index)`, which never change once
written; so a log stores each of them once and proves anything in O(log n) reads. Verification follows RFC 9162, whose
algorithms need no recursion and no knowledge of how the proof was built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from fedtwin_shared.errors import VerificationError

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()  # RFC 6962 §2.1: MTH({}) = SHA-256()
MAX_PROOF_HASHES: Final = 63  # C2SP tlog-witness: a client sends no more; enough for 2^62 leaves

Node = Callable[[int, int], bytes]  # (level, index) -> hash of the complete subtree of 2^level leaves


def hash_leaf(entry: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_subtrees(index: int, leaf: bytes, node: Node) -> Iterator[tuple[int, int, bytes]]:
    """Yield (level, index, hash) of each complete subtree that the leaf at `index` closes, itself first.

    - `node` is asked only for subtrees that were complete before
    """
    level, current = 0, leaf
    yield level, index, current
    while index & 1:
        current = hash_children(node(level, index - 1), current)
        level, index = level + 1, index >> 1
        yield level, index, current


def compute_root(entries: Iterable[bytes]) -> bytes:
    """Return the root over all entries (RFC 6962 §2.1). Holds O(log n) hashes at a time."""
    stack: list[bytes] = []
    for index, entry in enumerate(entries):
        current = hash_leaf(entry)
        while index & 1:
            current = hash_children(stack.pop(), current)
            index >>= 1
        stack.append(current)
    return _fold(stack)


def stored_root(size: int, node: Node) -> bytes:
    """Return the root of the first `size` leaves from stored subtrees."""
    return _range_hash(0, size, node) if size else EMPTY_ROOT


def prove_inclusion(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Return the audit path of the leaf at `index` in the tree of `size` leaves (RFC 6962 §2.1.1), leaf to root."""
    if not 0 <= index < size:
        raise ValueError("a proof is about a leaf in the tree")
    return tuple(reversed([_range_hash(*sibling, node) for sibling in _siblings(index, 0, size)]))


def prove_consistency(old: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Return the proof that the tree of `size` leaves extends that of `old` (RFC 6962 §2.1.2); empty for old = 0."""
    if not 0 <= old <= size:
        raise ValueError("an old tree is not larger than a new one")
    if old in (0, size):
        return ()
    path: list[bytes] = []
    low, high, whole = 0, size, True  # `whole`: everything left of the cut so far is the old tree itself
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(_range_hash(middle, high, node))
            high = middle
        else:
            path.append(_range_hash(low, middle, node))
            low, whole = middle, False
    if not whole:
        path.append(_range_hash(low, high, node))
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise `VerificationError` unless `leaf` (a leaf hash) is at `index` in the tree of that root (RFC 9162 §2.1.3.2).

    >>> verify_inclusion(hash_leaf(b"a"), index=0, size=1, proof=(), root=hash_leaf(b"a"))
    """
    _check_hashes((leaf, root, *proof), field="inclusion proof")
    if not 0 <= index < size:
        raise VerificationError(field="inclusion proof", expected=f"an index below {size}", found=str(index))
    position, last, current = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _refused("inclusion proof", "too long a proof")
        if position & 1 or position == last:
            current = hash_children(sibling, current)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            current = hash_children(current, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise _refused("inclusion proof", "too short a proof")
    if current != root:
        raise _refused("inclusion proof", "another root")


def verify_consistency(*, old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Raise `VerificationError` unless the tree of `size` leaves extends that of `old` leaves (RFC 9162 §2.1.4.2)."""
    _check_hashes((old_root, root, *proof), field="consistency proof")
    if not 0 <= old <= size:
        raise VerificationError(field="consistency proof", expected=f"at least {old} leaves", found=str(size))
    if old in (0, size):
        if proof:
            raise _refused("consistency proof", "too long a proof")
        if old_root != (EMPTY_ROOT if old == 0 else root):
            raise _refused("consistency proof", "another root")
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise _refused("consistency proof", "too short a proof")
    position, last = old - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _refused("consistency proof", "too long a proof")
        if position & 1 or position == last:
            before, after = hash_children(sibling, before), hash_children(sibling, after)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            after = hash_children(after, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise _refused("consistency proof", "too short a proof")
    if (before, after) != (old_root, root):
        raise _refused("consistency proof", "another root")


def _split(count: int) -> int:
    """The largest power of two below `count` (RFC 6962 §2.1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_hash(low: int, high: int, node: Node) -> bytes:
    """The hash of leaves [low, high), where `low` is where a subtree of that many leaves may begin."""
    parts: list[bytes] = []
    while low < high:
        level = (high - low).bit_length() - 1
        parts.append(node(level, low >> level))
        low += 1 << level
    return _fold(parts)


def _fold(parts: Sequence[bytes]) -> bytes:
    """The root of complete subtrees that shrink from left to right."""
    if not parts:
        return EMPTY_ROOT
    current = parts[-1]
    for left in reversed(parts[:-1]):
        current = hash_children(left, current)
    return current


def _siblings(index: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The ranges beside the way from the root down to the leaf."""
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            yield middle, high
            high = middle
        else:
            yield low, middle
            low = middle


def _check_hashes(hashes: Sequence[bytes], *, field: str) -> None:
    if len(hashes) > MAX_PROOF_HASHES + 2 or any(len(value) != HASH_BYTES for value in hashes):
        raise VerificationError(field=field, expected="hashes of 32 bytes, at most 63 of them", found="something else")


def _refused(field: str, found: str) -> VerificationError:
    return VerificationError(field=field, expected="a proof of this root", found=found)
