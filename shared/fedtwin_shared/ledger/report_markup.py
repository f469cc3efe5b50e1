"""The few forms of which a report's page is made, as HTML text, and how they look."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

STYLE: Final = """
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


def draw_table(head: Sequence[str] | None, rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already. numbers: columns of figures."""
    lines = [] if head is None else [_row(head, "th", numbers)]
    return f"<table>{''.join([*lines, *(_row(row, 'td', numbers) for row in rows)])}</table>"


def _row(cells: Sequence[str], tag: str, numbers: Sequence[int]) -> str:
    kinds = [' class="n"' if at in numbers else "" for at in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"


def draw_list(items: Iterable[str]) -> str:
    """Return a list of plain words."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def draw_share(share: str) -> str:
    """Return a share of 1 as a percentage with a bar."""
    width = max(0.0, min(100.0, float(share) * 100))
    return f'{format_percent(share)}<span class="bar"><i style="width:{width:.1f}%"></i></span>'


def format_percent(share: str) -> str:
    """Return a share of 1, as decimal text, as a percentage."""
    return f"{float(share) * 100:.2f}\u00a0%"


def escape(value: object) -> str:
    """Return a value as text that no reader of HTML takes for anything else."""
    return html.escape(str(value))
