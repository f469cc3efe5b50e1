"""The report of a verified bundle as one page of HTML: nothing is fetched, no script runs, every word is escaped.

Design note: the page says nothing that the JSON beside it does not, but for the plots, which need every charge.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import groupby
from typing import Any, Final

from fedtwin_shared.ledger.account import PLACES
from fedtwin_shared.ledger.audit_report import format_time
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.renyi import Curve, convert_to_epsilon
from fedtwin_shared.ledger.spending_history import Point, SpendingHistory
from fedtwin_shared.ledger.step_plot import StepLine, Tick, draw_steps
from fedtwin_shared.ledger.verification import VerifiedBundle

MOST_LINES: Final = 8  # blocks that are drawn and listed one by one: those that spent most
MOST_ROWS: Final = 40
MOST_POINTS: Final = 64  # of one line

Json = Mapping[str, Any]

_STYLE: Final = """
:root{color-scheme:light;--ink:#111827;--soft:#4b5563;--line:#e5e7eb;--paper:#fff;--good:#0f766e}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:#f3f4f6;margin:0}
main{max-width:60rem;margin:0 auto;padding:2rem 2.5rem 4rem;background:var(--paper)}
h1{font-size:1.7rem;margin:0}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;border-top:2px solid var(--ink);padding-top:.6rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}p,li{max-width:48rem}
.claim{border-left:5px solid var(--good);background:#f0fdfa;padding:.9rem 1.2rem;margin:1rem 0;font-size:1.08rem}
.soft,small,caption{color:var(--soft)}small{font-size:.85rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
caption{text-align:left;padding-bottom:.3rem}
td div+div{margin-top:.4rem}
code{font-size:.82rem;overflow-wrap:anywhere}
.bar{display:inline-block;width:5rem;height:.55rem;background:var(--line);margin-left:.5rem}
.bar i{display:block;height:100%;background:var(--good)}
svg{width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--soft);margin-top:.6rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;padding:0;margin:.2rem 0 1rem;font-size:.85rem}
.legend i{display:inline-block;width:.9rem;height:.25rem;margin-right:.4rem;vertical-align:middle}
.none{color:#b91c1c}
@media print{body{background:none}main{padding:0}h2{break-after:avoid}table,svg{break-inside:avoid}}
""".strip()


def render_report(report: Json, found: VerifiedBundle[SpendingHistory]) -> str:
    """Return the page of `audit_report.describe_audit`. found: the same bundle, for the plots.

    - every text that comes from the bundle is escaped
    - the same bundle gives the same page
    """
    hospitals = report["hospitals"]
    sections = [
        "<h1>Privacy audit</h1>",
        f'<p class="soft">Everything in this bundle holds. {_text(report["made_by"])} recomputed it offline, from '
        f"{report['bundle']['bytes']:,} bytes with SHA-256 <code>{_text(report['bundle']['sha256'])}</code>.</p>",
        *(_claim(part) for part in hospitals.values()),
        f"<p>{_text(report['trust_model'])}</p>",
        "<h3>The claim rests on these assumptions</h3>",
        _list(report["assumptions"]),
        "<h3>What was checked</h3>",
        _list(report["checks"]),
        *(_hospital(name, part, found.logs[name].state) for name, part in hospitals.items()),
        "<h2>Implementation</h2>",
        _list(report["implementation"]),
        _mapping(report["mapping"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Privacy audit</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body><main>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _claim(part: Json) -> str:
    return f'<p class="claim">{_text(part["claim"]["sentence"])}</p>'


def _hospital(name: str, part: Json, history: SpendingHistory) -> str:
    sections = [f"<h2>{_text(name)}</h2>"]
    if "blocks" in part:
        sections += [_spending(part, history), _blocks(part), _studies(part), _work(part), _empirical(part)]
    return "\n".join([*sections, _integrity(part)])


def _spending(part: Json, history: SpendingHistory) -> str:
    claim = part["claim"]
    facts = [
        ("unit", claim["unit"]),
        ("neighbouring", claim["adjacency"]),
        ("claimed for the lifetime", f"ε = {claim['epsilon']} at δ = {claim['delta']}"),
        ("spent so far, by those who spent most", f"ε ≤ {claim['epsilon_so_far']} by the odometer"),
        ("kept by", claim["rule"]),
        (
            "sealed or released",
            ", ".join(f"{count} × {task}" for task, count in claim["releases"].items()) or "nothing",
        ),
    ]
    facts += [
        ("a changed claim", f"ε = {one['epsilon']} since {one['since']}, signed by the hospital")
        for one in claim["claims"][1:]
    ]
    return (
        "<h3>What was spent</h3>" + _table(None, [(_text(key), _text(value)) for key, value in facts]) + _plot(history)
    )


def _plot(history: SpendingHistory) -> str:
    state = history.state
    policy, at = state.in_force, PLACES[state.in_force.order]

    @cache
    def odometer(spent: Curve) -> float:
        return float(read_odometer(spent, order=policy.order, delta=policy.delta))

    def kept(spent: Curve) -> float:
        return float(convert_to_epsilon(spent[at], order=policy.order, delta=policy.delta))

    alike: dict[tuple[tuple[int, Curve], ...], list[str]] = {}
    for name, block in sorted(history.blocks.items()):
        if block.points:
            alike.setdefault(tuple((point.entry, point.spent) for point in _thin(block.points)), []).append(name)
    if not alike:
        return "<p>No block has spent anything.</p>"
    drawn = sorted(alike.items(), key=lambda item: (-item[0][-1][1][at], item[1]))[:MOST_LINES]
    lines = [
        StepLine(
            label=_join(names),
            points=tuple((entry, kept(spent)) for entry, spent in points),
            beside=tuple((entry, odometer(spent)) for entry, spent in points),
        )
        for points, names in drawn
    ]
    limits = tuple((one.entry, float(one.epsilon)) for one in history.claims)
    last = len(history.times) - 1
    ticks = [
        Tick(place=place, words=(f"entry {place}", *format_time(history.times[place]).split(" ", 1)))
        for place in sorted({round(last * step / 4) for step in range(5)})
    ]
    plot = draw_steps(
        lines,
        limits=StepLine(label="claimed for the lifetime", points=limits),
        ticks=ticks,
        last=last,
        title="ε of each block over the ledger",
        amount="ε",
    )
    words = (
        "One line for all blocks that spent alike. Full lines: ε by the filter, at its one fixed order, which is what "
        "may not pass the claim. Dotted: ε by the odometer, a bound that holds at every moment at once; that costs it "
        "some tightness, so late in a life it may stand above the claim. Times are by the hospital's own clock."
    )
    return f"{plot}<p><small>{words}</small></p>"


def _blocks(part: Json) -> str:
    """One row for all blocks that spent alike, study by study."""
    names = {study["study"]: study["name"] for study in part["studies"]}
    alike: dict[tuple[object, ...], list[Json]] = {}
    for block in part["blocks"]:
        if block["by_study"] or Decimal(block["spent"]):
            key = (block["epsilon_odometer"], block["epsilon_filter"], *block["by_study"].items())
            alike.setdefault(key, []).append(block)
    groups = sorted(alike.values(), key=lambda group: (-Decimal(group[0]["spent"]), group[0]["block"]))
    rows = [
        (
            "".join(_patients(block) for block in group[:MOST_LINES])
            + (f"<div>and {len(group) - MOST_LINES} more</div>" if len(group) > MOST_LINES else ""),
            "".join(
                f"<div>{_text(names.get(study, study))}: {_percent(share)}</div>"
                for study, share in group[0]["by_study"].items()
            ),
            _text(group[0]["epsilon_odometer"]),
            _text(group[0]["epsilon_filter"]),
            _share(group[0]["spent"]),
            _percent(group[0]["remaining"]),
        )
        for group in groups[:MOST_ROWS]
    ]
    untouched, more = len(part["blocks"]) - sum(map(len, groups)), len(groups) - MOST_ROWS
    words = [f"{untouched} further blocks have spent nothing: blocks exist for every combination of studies."]
    words += [f"{more} further rows, of blocks that spent less, are in report.json."] if more > 0 else []
    words += [
        "Shares are of Rényi divergence at the filter's order, in which costs add up exactly; ε does not. The filter's "
        "ε is read at that one order alone, which serves a small loss poorly, so it begins high; the odometer looks at "
        "all orders. Where blocks were merged, a past is that of the patients who had spent most."
    ]
    head = ("patients", "what each study cost them", "ε, odometer", "ε, filter", "of the budget", "left")
    table = _table(head, rows, numbers=(2, 3, 4, 5)) if rows else ""
    return f"<h3>Blocks of patients</h3>{table}<p><small>{_text(' '.join(words))}</small></p>"


def _patients(block: Json) -> str:
    return f'{_text(block["patients"])} <code class="soft">{_text(block["block"])}</code>'


def _studies(part: Json) -> str:
    if not part["studies"]:
        return "<h3>Studies</h3><p>No study was enrolled.</p>"
    note = (
        "<p><small>A patient is in one part of a study at most. Shares are of a patient's lifetime budget. The last "
        "column is of that one signed plan alone, by composition of privacy-loss distributions, every declared attempt "
        "included; such figures of different plans must not be added or compared with the lifetime's.</small></p>"
    )
    return "<h3>Studies</h3>" + "".join(map(_study, part["studies"])) + note


def _study(study: Json) -> str:
    question = study["question"] or "The signed study is not in this bundle."
    rows = [
        (
            _text(one["part"]),
            "<br>".join(_text(use["mechanism"]) for use in one["programme"]),
            "<br>".join(f"{use['charged']:,} of {use['exactly']['count']:,}" for use in one["programme"]),
            _percent(one["charged"]),
            _percent(one["remaining"]),
            _text(one["plan_epsilon"] or "–"),
        )
        for one in study["parts"]
    ]
    head = ("part", "mechanism", "runs charged", "spent", "may yet spend", "ε of the plan")
    return (
        f"<p><strong>{_text(study['name'])}</strong>{', closed' if study['closed'] else ''}. {_text(question)}<br>"
        f'<code class="soft">{_text(study["study"])}</code></p>' + _table(head, rows, numbers=(2, 3, 4, 5))
    )


def _work(part: Json) -> str:
    work = part["work"]
    rows = [
        ("released", work["released"], "left the hospital"),
        ("sealed, no release recorded", work["sealed_only"], "an answer exists and counts as released"),
        ("started, never sealed", work["started_never_sealed"], "a crash, or under way; charged in full"),
        ("reserved, never started", work["reserved_never_started"], "a crash, or under way; charged in full"),
        ("aborted before the start", work["aborted"], "nothing was read; given back unless the blocks had changed"),
        *((f"refused: {code}", count, "a signed refusal") for code, count in work["refusals"].items()),
    ]
    table = _table(None, [(_text(a), f"{b:,}", _text(c)) for a, b, c in rows], numbers=(1,))
    unsealed = work["unsealed"][:MOST_ROWS]
    keys = "".join(f"<li><code>{_text(key)}</code></li>" for key in unsealed)
    listed = f"<p>Charged and not sealed, as study/run/round/attempt/task:</p><ul>{keys}</ul>" if keys else ""
    return f"<h3>Releases, refusals and crashes</h3>{table}{listed}"


def _empirical(part: Json) -> str:
    rows = []
    for one in part["conformance"][-MOST_ROWS:]:
        judged = one["judged_anew"]
        if judged is None:
            words = "the result is not in this bundle: only the hospital's word"
        else:
            verdict = "as claimed" if judged["as_claimed"] else "NOT as claimed: " + "; ".join(judged["against_it"])
            words = (
                f"judged anew: {verdict}; an attack proved ε ≥ {judged['epsilon_lower_bound']} of the "
                f"{judged['epsilon_claimed']} claimed; {judged['engine']}, {judged['day']}, by {judged['signed_by']}"
            )
        rows.append(
            (_text(one["time"]), _text(one["outcome"]), _text(words), f"<code>{_text(one['code'][:16])}</code>")
        )
    shown = (
        _table(("recorded", "outcome", "what can be said of it", "program"), rows)
        if rows
        else '<p class="none">No conformance audit is recorded in this ledger: nothing empirical supports it.</p>'
    )
    code = [
        (f"<code>{_text(one['digest'])}</code>", f"{one['answers']:,}", _text(f"{one['first']} to {one['last']}"))
        for one in part["code"]
    ]
    programs = _table(("program that sealed answers", "answers", "when"), code, numbers=(1,)) if code else ""
    return f"<h3>Empirical audits</h3>{shown}{programs}"


def _integrity(part: Json) -> str:
    integrity = part["integrity"]
    facts = [
        ("ledger", integrity["origin"]),
        ("entries", f"{integrity['entries']:,}, from {integrity['first_entry']} to {integrity['last_entry']}"),
        ("of these", ", ".join(f"{count} {kind}" for kind, count in integrity["kinds"].items())),
        ("Merkle root", integrity["root"]),
        ("witnesses required", integrity["required"]),
        *((f"cosigned by {witness}", time) for witness, time in integrity["cosigned"].items()),
        *(("site policy", f"{one['digest']} since {one['since']}") for one in part.get("site_policies", ())),
    ]
    return "<h3>Integrity</h3>" + _table(None, [(_text(key), _text(value)) for key, value in facts])


def _mapping(rows: Iterable[Json]) -> str:
    parts = [
        "<h2>What this is evidence for, and what not</h2>",
        "<p>In our own words and no legal advice. No row says that a rule is complied with: each says what an assessor "
        "can take from this report, and what has to come from elsewhere.</p>",
    ]
    for source, group in groupby(rows, key=lambda row: row["source"]):
        cells = [[_text(row[key]) for key in ("place", "asks", "evidence", "not_evidence")] for row in group]
        parts.append(f"<h3>{_text(source)}</h3>" + _table(("place", "asks for", "evidence here", "not here"), cells))
    return "".join(parts)


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already. numbers: columns of figures."""
    lines = [] if head is None else [_row(head, "th", numbers)]
    return f"<table>{''.join([*lines, *(_row(row, 'td', numbers) for row in rows)])}</table>"


def _row(cells: Sequence[str], tag: str, numbers: Sequence[int]) -> str:
    kinds = [' class="n"' if at in numbers else "" for at in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _share(share: str) -> str:
    width = max(0.0, min(100.0, float(share) * 100))
    return f'{_percent(share)}<span class="bar"><i style="width:{width:.1f}%"></i></span>'


def _percent(share: str) -> str:
    return f"{float(share) * 100:.2f} %"


def _thin(points: tuple[Point, ...]) -> tuple[Point, ...]:
    step = -(-len(points) // MOST_POINTS)
    return points[::-step][::-1] if points else points


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _text(value: object) -> str:
    return html.escape(str(value))
