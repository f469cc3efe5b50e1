"""What attacks on secure aggregation share: rebuilding a secret from shares, and taking masks off a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fedtwin_shared.secagg.masking import mask_pair, mask_seed
from fedtwin_shared.secagg.masks import add_masks
from fedtwin_shared.secagg.shamir import read_share, recover_secrets
from tests.shared.secagg.assembly import Integers

LENGTH: Final = 3  # numbers of a vector under attack
SEED: Final = 0  # place of a seed's share in a pair
KEY: Final = 1


def recover(shares: Mapping[str, bytes], names: Sequence[str], threshold: int) -> bytes:
    """A secret, from what some holders have of it."""
    holders = sorted(shares)[:threshold]
    rows = [read_share(shares[name]) for name in holders]
    secret = recover_secrets(rows, [names.index(name) for name in holders])[0]
    assert secret is not None
    return secret


def strip(
    total: Any, *, binding: str, seeds: Mapping[str, bytes], pairs: Mapping[tuple[str, str], tuple[bytes, bytes]]
) -> Integers:
    """The sum of some sites' vectors, from their masked ones, their seeds, and either end of each mask that is left.

    pairs: by site inside the sum and site outside it, a private key of one and the public key of the other.
    """
    added = list[bytes]()
    subtracted = [mask_seed(seed, binding=binding, owner=name) for name, seed in seeds.items()]
    for (inside, outside), (private, public) in pairs.items():
        key = mask_pair(private, public, binding=binding, names=(inside, outside))
        (subtracted if inside < outside else added).append(key)
    stripped = total.copy()
    add_masks(stripped, added=added, subtracted=subtracted)
    found: Integers = stripped.view(np.int64)
    return found
