"""What a hospital is asked, as lines on a screen that no study can forge.

Design note: a study's question is the coordinator's own text. It is printed as a quotation: every line of it starts
with a mark that no other line has, it is broken here and never by the terminal, and whatever is not a letter, a digit
or ordinary punctuation is written as its code, so that it cannot draw, move or colour anything. All other words are
ours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, chop_cells

from fedtwin_client.policy import SitePolicy
from fedtwin_client.spending_limits import BlockCost, SpendingLimits
from fedtwin_client.studies import missing_signatures
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.study import Study

Rows = Sequence[tuple[str, str]]  # subject, words

QUOTED: Final = frozenset({"question"})  # the subjects whose words are not ours
MARK: Final = "> "
COLUMN: Final = 16  # width of the subjects: a digest fits beside it on 80 columns
LEAST_WIDTH: Final = 60  # a narrower terminal breaks lines where we cannot see it

# Unicode 15, general categories: letters, decimal digits and numbers, punctuation but for its odd brackets, currency.
_PLAIN: Final = frozenset(
    {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sc"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCosts:
    """What every block has paid before a study, and would have paid after all of it; None: ∞."""

    before: tuple[BlockCost, ...]
    after: tuple[BlockCost, ...] | None


def lay_out(rows: Rows, *, width: int) -> list[str]:
    """Return the rows as lines of at most `width` columns.

    - every line of a quotation, and no other, has `MARK` where its words begin
    - without its quotations the screen is the same whatever they say
    """
    width = max(width, LEAST_WIDTH)
    lines = []
    for subject, words in rows:
        quoted = subject in QUOTED
        mark = MARK if quoted else ""
        broken = list(_break(neutralise(words) if quoted else words, width - COLUMN - len(mark)))
        for number, line in enumerate(broken):
            lines.append(f"{subject if number == 0 else '':{COLUMN}}{mark}{line}".rstrip())
    return lines


def neutralise(text: str) -> str:
    """Return a foreign text in one line, with everything unusual written as its code.

    >>> neutralise("who  dies?\u2502 price 0")
    'who dies?U+2502 price 0'
    """
    plain = (character if _is_plain(character) else f"U+{ord(character):04X}" for character in text)
    return " ".join("".join(plain).split())


def _is_plain(character: str) -> bool:
    return character in " +=<>≤≥±×°" or unicodedata.category(character) in _PLAIN


def _break(text: str, width: int) -> Iterator[str]:
    """Yield a text in lines of at most `width` columns, broken at spaces where it has them."""
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            yield line
        *whole, line = chop_cells(word, width) or [""]
        yield from whole
    yield line


def describe_costs(costs: StudyCosts, limits: SpendingLimits) -> tuple[tuple[str, str], ...]:
    """Return what is left to every block of patients of a year and of a lifetime, now and after all of a study."""
    rows = [
        f"a patient may pay ε = {limits.year:f} in 365 days and {limits.lifetime:f} ever; by the ledger's odometer:"
    ]
    paid = {(cost.block, cost.part): cost for cost in costs.before}
    for cost in costs.after or ():
        old = paid[cost.block, cost.part]
        left = f"{limits.year - old.year:.3f} and {limits.lifetime - old.lifetime:.3f}"
        after = f"{limits.year - cost.year:.3f} and {limits.lifetime - cost.lifetime:.3f}"
        verdict = "" if cost.within(limits) else ": BEYOND THE LIMIT"
        rows.append(f"block {cost.block}, as {cost.part} patients: left {left}, after all of it {after}{verdict}")
    if costs.after is None:
        rows.append("without noise the price is ∞")
    return tuple(("what is left" if number == 0 else "", line) for number, line in enumerate(rows))


def describe_collusion(study: Study) -> tuple[tuple[str, str], ...]:
    """Return ε against the coordinator and all other hospitals together, as (subject, words)."""
    return (
        ("if all collude", f"ε = {study.price():.3f} against all others: this hospital adds all of its noise itself"),
        ("", "a patient of two hospitals of the study pays at both"),
    )


def describe_signers(signed: SignedStudy, policy: SitePolicy, *, site: str) -> tuple[tuple[str, str], ...]:
    """Return who signed, and which of the other hospitals this one verified itself, as (subject, words)."""
    others = [part.site for part in signed.study.participants if part.site != site]
    verified = signed.roster.verified(policy.trusted_peers)
    rows = [
        ("signed by", ", ".join(["the coordinator", *sorted(signed.signers)])),
        ("peers", f"verified here: {_list(name for name in others if name in verified)}"),
        ("", f"known from the coordinator alone: {_list(name for name in others if name not in verified)}"),
    ]
    missing = missing_signatures(signed, policy, site=site)
    if missing:
        rows.append(("", f"no round before these have signed, under keys verified here: {_list(missing)}"))
    return tuple(rows)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
