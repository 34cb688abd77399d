"""Results that a run directory holds besides those with a section of their own, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from model.errors import InputError
from model.files import read_json
from model.run import RunDirectory
from scripts.report.html import fact_list, table

# Files that have their own place on the page, or hold no results.
KNOWN = frozenset(
    {
        "model_config.json",
        "number_format.json",
        "quantization.json",
        "quantization_sweep.json",
        "sample.json",
        "stages.json",
        "tokenizer.json",
        "training.json",
    }
)
LONGEST = 40  # rows of a table


def other_results(directory: RunDirectory, digests: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the content of the other JSON files: evaluations, benchmarks, netlist checks.

    Args:
        directory: The run.
        digests: `model_sha256` and `manifest_sha256` of the present models; a file that names
            another is left out.
    """
    found = {}
    for path in sorted(directory.path.glob("*.json")):
        if path.name in KNOWN:
            continue
        try:
            content = read_json(path)
        except InputError:
            continue
        if isinstance(content, dict) and all(content.get(name, one) == one for name, one in digests.items()):
            found[path.name] = content
    return found


def shown(results: Mapping[str, Any]) -> str:
    """Return every file's figures: numbers and texts as a list, lists of objects as tables."""
    return "".join(f"<h3>{escape(name)}</h3>{content_of(content)}" for name, content in results.items())


def content_of(content: Mapping[str, Any], prefix: str = "") -> str:
    """Return an object's figures."""
    facts: dict[str, object] = {}
    parts: list[str] = []
    for name, value in content.items():
        if name.endswith("sha256"):
            continue
        if isinstance(value, dict):
            parts.append(content_of(value, f"{prefix}{name} "))
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            headings = list(dict.fromkeys(key for row in value for key in row))
            rows = [[text_of(row.get(key)) for key in headings] for row in value[:LONGEST]]
            parts.append(f"<p>{escape(prefix + name)}</p>{table(headings, rows)}")
        elif value not in (None, [], {}):
            facts[prefix + name] = text_of(value)
    return (fact_list(facts) if facts else "") + "".join(parts)


def text_of(value: object) -> str:
    """Return a figure as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
