"""The page that compares several runs: `positron report RUN1 RUN2 …`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from string import Template

from scripts.output import format_duration
from scripts.quantization.sweep import pareto_front
from scripts.report.data import ReportData
from scripts.report.figures import Point, curves, loss_over_bytes
from scripts.report.html import table
from scripts.report.interactive import policy
from scripts.report.page import TEMPLATE, quotation, slowest_clock, weights

Figure = Callable[[ReportData], str | None]


def comparison(runs: Sequence[ReportData], texts: Sequence[str]) -> str:
    """Return the page.

    Args:
        runs: At least two.
        texts: What the held-out text and the vocabulary of each are: losses of different ones do
            not compare.
    """
    names = [one.name for one in runs]
    parts = [section("table", "Figures", figures_table(runs))]
    if same := len(set(texts)) == 1:
        parts.append(section("size", "Loss over bytes", sizes(runs)))
    note = (
        ""
        if same
        else '<p class="missing">The runs have different held-out texts or vocabularies: their losses do not compare.</p>'
    )
    parts.insert(1, section("training", "Held-out loss while training", note + losses(runs)))
    texts_written = "".join(f"<h3>{escape(one.name)}</h3>{quotation(*written(one))}" for one in runs if one.sample)
    if texts_written:
        parts.append(section("samples", "What they write", texts_written))
    head, rest = TEMPLATE.read_text(encoding="utf-8").split("<main>")
    return Template(f"{head}<main>$main</main>{rest.split('</main>')[1]}").substitute(
        policy=policy(),
        title=escape(", ".join(names)),
        lead=f"{len(runs)} runs side by side. What a run lacks is left empty; the report of that run alone names the command.",
        figures="",
        main="".join(parts),
        scripts="",
        footer=f"Made by <code>positron report {escape(shlex.join(names))}</code>.",
    )


def section(name: str, title: str, content: str) -> str:
    """Return a section of the page; one without content is left out."""
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>' if content else ""


def figures_table(runs: Sequence[ReportData]) -> str:
    """Return a column for each run, and a row for each figure that one of them has."""
    rows = []
    for title, figure in FIGURES.items():
        found = [figure(one) for one in runs]
        if any(found):
            rows.append((title, *(value or "" for value in found)))
    headings = ("", *(one.name for one in runs))
    return table(headings, rows, numeric=tuple(range(1, len(runs) + 1)))


def losses(runs: Sequence[ReportData]) -> str:
    """Return the held-out losses of all runs over their steps, on one scale."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in runs:
        for curve in one.loss_curves:
            if curve.name == "held out":
                lines[one.name] = [point for point in curve.points if math.isfinite(point[1]) and point[0] > 0]
    lines = {name: points for name, points in lines.items() if points}
    return f"<figure>{curves(lines, 'training steps', 'held-out loss, nats a token')}</figure>" if lines else ""


def sizes(runs: Sequence[ReportData]) -> str:
    """Return the integer models' losses over their bytes, with the points of sweeps."""
    series: dict[str, list[Point]] = {}
    for one in runs:
        points: dict[tuple[float, int], str] = {}
        for point in (one.sweep or {}).get("points", ()):
            points[point["loss"], point["bytes"]] = str(point["settings"]["weight_bits"])
        if one.quantization:
            place = one.quantization["comparison"]["fixed_loss"], one.quantization["storage_bytes"]
            points[place] = str(one.quantization["settings"]["weight_bits"])
        if points:
            series[one.name] = [(bits, loss, size) for (loss, size), bits in points.items()]
    if not series:
        return ""
    front = pareto_front(series)
    rows = [(name, bits, f"{loss:z.4f}", f"{size:,}") for name, bits, loss, size in front]
    return (
        f"<figure>{loss_over_bytes(series, front, 'held-out loss, nats')}</figure>"
        "<p>Least loss for their bytes; the number in the chart is the weights’ bits:</p>"
        + table(("run", "weights", "loss", "bytes"), rows, numeric=(2, 3))
    )


def written(run: ReportData) -> tuple[str, str]:
    """Return the prompt and what follows it."""
    if run.sample.startswith(run.prompt):
        return run.prompt, run.sample[len(run.prompt) :]
    return "", run.sample


def _of_quantization(figure: Callable[[Mapping], str]) -> Figure:
    return lambda run: figure(run.quantization) if run.quantization else None


def _used(kind: str) -> Figure:
    def figure(run: ReportData) -> str | None:
        if not run.synthesis:
            return None
        return f"{run.synthesis[kind]['used']:,} of {run.synthesis[kind]['available']:,}"

    return figure


def _clock(run: ReportData) -> str | None:
    clock = slowest_clock(run.synthesis) if run.synthesis else None
    return f"{clock['achieved_mhz']:.1f} MHz" if clock else None


def _cycles(run: ReportData) -> str | None:
    found = (run.simulation or {}).get("written")
    return f"{found['cycles']:,.0f}" if found else None


def _speed(run: ReportData) -> str | None:
    clock = slowest_clock(run.synthesis) if run.synthesis else None
    found = (run.simulation or {}).get("written")
    return f"{clock['required_mhz'] * 1e6 / found['cycles']:,.0f}" if clock and found else None


def _seconds(run: ReportData) -> str | None:
    return format_duration(run.training["seconds"]) if run.training.get("seconds") else None


FIGURES: dict[str, Figure] = {
    "parameters": lambda run: f"{run.model['parameters']:,}",
    "layers × width": lambda run: f"{run.model['num_layers']} × {run.model['embed_dim']}",
    "heads": lambda run: str(run.model["num_heads"]),
    "context": lambda run: str(run.model["max_seq_len"]),
    "vocabulary": lambda run: f"{run.model['vocab_size']:,}",
    "training steps": lambda run: f"{run.training['steps']:,}" if run.training.get("steps") else None,
    "training time": _seconds,
    "loss in floating point, nats": _of_quantization(lambda one: f"{one['comparison']['float_loss']:z.4f}"),
    "loss in integers, nats": _of_quantization(lambda one: f"{one['comparison']['fixed_loss']:z.4f}"),
    "difference": _of_quantization(lambda one: f"{one['comparison']['difference']:+z.4f}"),
    "weights": lambda run: weights(run) if run.quantization else None,
    "bytes of integers": _of_quantization(lambda one: f"{one['storage_bytes']:,}"),
    "design, board": lambda run: f"{run.synthesis['design']}, {run.synthesis['board']}" if run.synthesis else None,
    "lookup tables": _used("luts"),
    "block RAMs": _used("block_rams"),
    "multipliers": _used("multipliers"),
    "clock reached": _clock,
    "cycles a token": _cycles,
    "tokens a second": _speed,
}
