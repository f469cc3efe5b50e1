"""Masks: keys from secrets and the step's binding, and their AES-256-CTR streams added to vectors over Z_2^64.

Sources: X25519 of RFC 7748; HKDF-SHA256 of RFC 5869; counter mode of NIST SP 800-38A section 6.5. A key serves one
stream, so the counter starts at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Vector = npt.NDArray[np.uint64]

KEY_BYTES: Final = 32
CHUNK_BYTES: Final = 1 << 17  # of a stream at once: it and its part of the vector stay in a core's own cache
LABEL: Final = b"fedtwin/secure-aggregation/1/"


def derive_key(secret: bytes, *, purpose: str, context: str, names: Sequence[str] = ()) -> bytes:
    """Return 32 bytes from a secret, for one purpose of one context and these names, in this order."""
    info = LABEL + "/".join([purpose, context, *names]).encode()  # names are RFC 1123 labels: no slash
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def exchange(private: bytes, public: bytes) -> bytes:
    """Return the X25519 secret of two keys. Raises `ValueError` for a public key of small order (RFC 7748, 6.1)."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_half(private: bytes) -> bytes:
    """Return the X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def add_masks(vector: Vector, *, added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    """Add the streams of some keys to the vector, and subtract those of others, in place and modulo 2^64."""
    signed_keys: list[tuple[bytes, np.ufunc]] = [(key, np.add) for key in added]
    signed_keys += [(key, np.subtract) for key in subtracted]
    streams = [(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in signed_keys]
    zeros, stream = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)  # update_into wants a block to spare
    numbers = np.frombuffer(stream, dtype="<u8", count=CHUNK_BYTES // 8)
    for start in range(0, len(vector), len(numbers)):
        part = vector[start : start + len(numbers)]
        for encryptor, combine in streams:
            encryptor.update_into(zeros[: part.nbytes] if len(part) < len(numbers) else zeros, stream)
            combine(part, numbers[: len(part)], out=part)
