"""The report of a verified bundle as one page of HTML: nothing is fetched, no script runs, every word is escaped.

Design note: the page says nothing that the JSON beside it does not, but for the plots, which need every charge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import groupby
from typing import Any, Final

from fedtwin_shared.ledger.report_markup import STYLE, draw_list, draw_share, draw_table, escape, format_percent
from fedtwin_shared.ledger.spending_history import SpendingHistory
from fedtwin_shared.ledger.spending_plot import draw_spending
from fedtwin_shared.ledger.verification import VerifiedBundle

MOST_LINES: Final = 8  # in one cell
MOST_ROWS: Final = 40

Json = Mapping[str, Any]


def render_report(report: Json, found: VerifiedBundle[SpendingHistory]) -> str:
    """Return the page of `audit_report.describe_audit`. found: the same bundle, for the plots.

    - every text that comes from the bundle is escaped
    - the same bundle gives the same page
    """
    hospitals = report["hospitals"]
    sections = [
        "<h1>Privacy audit</h1>",
        f'<p class="soft">Everything in this bundle holds. {escape(report["made_by"])} recomputed it offline, from '
        f"{report['bundle']['bytes']:,} bytes with SHA-256 <code>{escape(report['bundle']['sha256'])}</code>.</p>",
        *(f'<p class="claim">{escape(sentence)}</p>' for sentence in report["claims"]),
        _overview(hospitals),
        f"<p>{escape(report['trust_model'])}</p>",
        "<h3>The claim rests on these assumptions</h3>",
        draw_list(report["assumptions"]),
        "<h3>What was checked</h3>",
        draw_list(report["checks"]),
        *(_hospital(name, part, found.logs[name].state) for name, part in hospitals.items()),
        "<h2>Implementation</h2>",
        draw_list(report["implementation"]),
        _mapping(report["mapping"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Privacy audit</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body><main>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _overview(hospitals: Json) -> str:
    rows = []
    for name, part in hospitals.items():
        if "blocks" not in part:
            rows.append((escape(name), "–", "–", "–", "0", "0", "0", "–"))
            continue
        claim, work = part["claim"], part["work"]
        audits = [one["judged_anew"] is not None and one["judged_anew"]["as_claimed"] for one in part["conformance"]]
        rows.append(
            (
                f'<a href="#{escape(name)}">{escape(name)}</a>',
                escape(claim["epsilon"]),
                escape(claim["epsilon_so_far"]),
                format_percent(str(max((Decimal(row["spent"]) for row in part["blocks"]), default=0))),
                f"{sum(claim['releases'].values()):,}",
                f"{sum(work['refusals'].values()):,}",
                f"{len(work['unsealed']):,}",
                f"{sum(audits)} of {len(audits)}" if audits else "none",
            )
        )
    head = (
        "hospital",
        "claimed ε",
        "ε so far",
        "spent at most",
        "answers",
        "refusals",
        "never sealed",
        "audits that held",
    )
    return draw_table(head, rows, numbers=range(1, 8))


def _hospital(name: str, part: Json, history: SpendingHistory) -> str:
    sections = [f'<h2 id="{escape(name)}">{escape(name)}</h2>']
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
        (
            "a changed claim",
            f"ε = {one['epsilon']} since {one['since']}, signed with the key that the first entry names",
        )
        for one in claim["claims"][1:]
    ]
    return (
        "<h3>What was spent</h3>"
        + draw_table(None, [(escape(key), escape(value)) for key, value in facts])
        + draw_spending(history)
    )


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
                f"<div>{escape(names.get(study, study))}: {format_percent(share)}</div>"
                for study, share in group[0]["by_study"].items()
            ),
            escape(group[0]["epsilon_odometer"]),
            escape(group[0]["epsilon_filter"]),
            draw_share(group[0]["spent"]),
            format_percent(group[0]["remaining"]),
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
    table = draw_table(head, rows, numbers=(2, 3, 4, 5)) if rows else ""
    return f"<h3>Blocks of patients</h3>{table}<p><small>{escape(' '.join(words))}</small></p>"


def _patients(block: Json) -> str:
    return f'<div>{escape(block["patients"])} <code class="soft">{escape(block["block"])}</code></div>'


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
    about = escape(study["question"] or "The signed study is not in this bundle: not compared with it.")
    about += f" Privacy mode “{escape(study['mode'])}”." if study["mode"] else ""
    rows = [
        (
            escape(one["part"]),
            "<br>".join(escape(use["mechanism"]) for use in one["programme"]),
            "<br>".join(f"{use['charged']:,} of {use['exactly']['count']:,}" for use in one["programme"]),
            format_percent(one["charged"]),
            format_percent(one["remaining"]),
            escape(one["plan_epsilon"] or "–"),
        )
        for one in study["parts"]
    ]
    head = ("part", "mechanism", "runs charged", "spent", "may yet spend", "ε of the plan")
    return (
        f"<p><strong>{escape(study['name'])}</strong>{', closed' if study['closed'] else ''}. {about}<br>"
        f'<code class="soft">{escape(study["study"])}</code></p>' + draw_table(head, rows, numbers=(2, 3, 4, 5))
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
    table = draw_table(None, [(escape(a), f"{b:,}", escape(c)) for a, b, c in rows], numbers=(1,))
    unsealed = work["unsealed"][:MOST_ROWS]
    keys = "".join(f"<li><code>{escape(key)}</code></li>" for key in unsealed)
    listed = f"<p>Charged and not sealed, as study/run/round/attempt/task:</p><ul>{keys}</ul>" if keys else ""
    return f"<h3>Releases, refusals and crashes</h3>{table}{listed}"


def _empirical(part: Json) -> str:
    sealed = {one["digest"] for one in part["code"]}
    rows = [
        (
            escape(one["time"]),
            escape(one["outcome"]),
            _judgement(one["judged_anew"]),
            f"<code>{escape(one['code'][:16])}</code>, which sealed {'answers' if one['code'] in sealed else 'none'}",
        )
        for one in part["conformance"][-MOST_ROWS:]
    ]
    shown = (
        draw_table(("recorded", "it says", "what can be said of it", "of the program"), rows)
        if rows
        else '<p class="none">No conformance audit is recorded in this ledger: nothing empirical supports it.</p>'
    )
    code = [
        (f"<code>{escape(one['digest'])}</code>", f"{one['answers']:,}", escape(f"{one['first']} to {one['last']}"))
        for one in part["code"]
    ]
    programs = draw_table(("program that sealed answers", "answers", "when"), code, numbers=(1,)) if code else ""
    return f"<h3>Empirical audits</h3>{shown}{programs}"


def _judgement(judged: Json | None) -> str:
    if judged is None:
        return "the result is not in this bundle: only the hospital's word"
    signer = "the ledger's own key" if judged["by_ledger_key"] else f"{judged['signed_by']}, not the ledger's key"
    bounds = (
        f"an attack proved ε ≥ {judged['epsilon_lower_bound']} of the {judged['epsilon_claimed']} claimed; "
        f"{judged['engine']}, {judged['day']}, signed by {signer}"
    )
    if judged["as_claimed"]:
        return escape(f"judged anew: as claimed; {bounds}")
    reasons = "; ".join(judged["against_it"])
    return f'<span class="none">judged anew: NOT as claimed: {escape(reasons)}</span>; {escape(bounds)}'


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
    return "<h3>Integrity</h3>" + draw_table(None, [(escape(key), escape(value)) for key, value in facts])


def _mapping(rows: Iterable[Json]) -> str:
    parts = [
        "<h2>What this is evidence for, and what not</h2>",
        "<p>In our own words and no legal advice. No row says that a rule is complied with: each says what an assessor "
        "can take from this report, and what has to come from elsewhere.</p>",
    ]
    for source, group in groupby(rows, key=lambda row: row["source"]):
        cells = [[escape(row[key]) for key in ("place", "asks", "evidence", "not_evidence")] for row in group]
        parts.append(
            f"<h3>{escape(source)}</h3>" + draw_table(("place", "asks for", "evidence here", "not here"), cells)
        )
    return "".join(parts)
