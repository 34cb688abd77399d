"""The lists and tables of the report's page as HTML; all text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def fact_list(facts: Mapping[str, object]) -> str:
    """Return names and values in a list; what is None is left out."""
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(f'{value:,}' if isinstance(value, int) else str(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    ]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), safe: Sequence[int] = ()
) -> str:
    """Return a table; columns in `numeric` stand to the right, those in `safe` are HTML already."""

    def cell(tag: str, index: int, text: str) -> str:
        style = ' class="number"' if index in numeric else ""
        shown = text if tag == "td" and index in safe else escape(text)
        return f"<{tag}{style}>{shown}</{tag}>"

    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(cell(tag, index, text) for index, text in enumerate(texts)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", headings)}</thead><tbody>{body}</tbody></table></div>'
