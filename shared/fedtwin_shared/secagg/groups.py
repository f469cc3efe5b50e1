"""Robustness under masks: sites in random groups, each a secure aggregation of its own, and a rule over group means.

The coordinator must not choose who is with whom: it would put one honest site among its own. So the groups follow from
random numbers that all sites commit to, signed, before any of them is shown. The last one to show its number sees what
the groups will be and may keep silent instead: whoever committed and does not show is named and left out, and the draw
is made anew without it, so that a silent site buys one more draw with its place in the study's round.

What it cannot do: a group with one hostile site has a mean that this site chose, up to the clip. At 20 % hostile of 50
and groups of 6, 24 % of the groups are clean; groups cannot be made smaller for that, because noise and hiding need
them: in a group of g sites, g - d - c honest ones carry the noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Final

from fedtwin_shared.secagg.message import Phase, ProtocolError
from fedtwin_shared.secagg.terms import Terms, smallest_threshold

NONCE_BYTES: Final = 32
LABEL: Final = b"fedtwin/secure-aggregation/groups/1/"
FEWEST_HONEST: Final = 3  # beside dropouts and colluders: with two, each would know the other's vector


def commit_nonce(nonce: bytes, *, context: str, site: str) -> bytes:
    """Return a site's commitment to its 32 random bytes; the site signs it for this context."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"expected {NONCE_BYTES} bytes, found {len(nonce)}")
    return hashlib.sha256(LABEL + f"commit/{context}/{site}/".encode() + nonce).digest()


def assign_groups(
    commitments: Mapping[str, bytes], nonces: Mapping[str, bytes], *, context: str, size: int
) -> tuple[tuple[str, ...], ...]:
    """Return groups of at least `size` sites, each sorted by name, from everybody's shown numbers.

    Raises `ProtocolError`, naming the site, for one that committed and does not show its number, or shows another one.

    - the same numbers give the same groups everywhere; every site is in one group
    - groups differ in size by at most what is left over: none is smaller than `size`
    """
    for site, commitment in sorted(commitments.items()):
        nonce = nonces.get(site, b"")
        if len(nonce) != NONCE_BYTES or commit_nonce(nonce, context=context, site=site) != commitment:
            expected, found = "the number that was committed to", "none" if not nonce else "another"
            raise ProtocolError(phase=Phase.KEYS, sender=site, expected=expected, found=found)
    names = sorted(commitments)
    if len(names) < size:
        raise ValueError(f"expected at least {size} sites, found {len(names)}")
    seed = hashlib.sha256(LABEL + f"seed/{context}/".encode() + b"".join(nonces[site] for site in names)).digest()
    drawn = sorted(names, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    count = len(names) // size
    return tuple(tuple(sorted(drawn[place::count])) for place in range(count))


def group_terms(terms: Terms, group: Sequence[str], *, dropouts: int, colluders: int, smallest: int) -> Terms:
    """Return the terms of one group, in which all d and all c of the consortium may be.

    `ValueError` unless g >= d + c + 3 and g >= `smallest`, the policy's least number of sites in a sum: a group is
    never made smaller for robustness.

    - each of its sites adds `share_noise` of these terms, σ / √(g - d - c)
    """
    fewest = max(dropouts + colluders + FEWEST_HONEST, smallest)
    if len(group) < fewest:
        raise ValueError(
            f"expected groups of at least {fewest} sites ({dropouts} dropouts + {colluders} colluders + "
            f"{FEWEST_HONEST}, and the policy's {smallest}), found {len(group)}"
        )
    members = tuple((name, key) for name, key in terms.members if name in set(group))
    return Terms(
        members=members,
        threshold=smallest_threshold(len(members), colluders=colluders),
        dropouts=dropouts,
        colluders=colluders,
        instances=terms.instances,
        largest=terms.largest,
    )


def clean_share(sites: int, *, hostile: int, size: int) -> float:
    """Return the chance that a random group of `size` among the sites has no hostile one.

    >>> round(clean_share(50, hostile=10, size=6), 2)
    0.24
    """
    return math.comb(sites - hostile, size) / math.comb(sites, size)
