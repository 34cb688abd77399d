"""The report's pictures of the decoder machine: its units over one token, and where its cores lie.

Everything is inline SVG; text that comes from files is escaped here.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from model.files import read_json
from scripts.report.charts import alpha_png
from scripts.report.html import table

# The order of the rows: as a token goes through.
UNITS = (
    "embedding",
    "norms",
    "engine",
    "requantize",
    "rotate",
    "softmax",
    "divide",
    "hidden",
    "residual",
    "choice",
)
SMALLEST_GAP = 0.02  # of a token's cycles, from which a gap is written into the picture
LISTED = 16  # cores that have a colour of their own and a line in the table
WIDTH, LEFT, ROW = 760, 82, 20  # of the timeline, in the drawing's units
LADDER = Path(__file__).parents[2] / "docs" / "hardware" / "decoder_ladder.json"
STRIP, STAGE = 96, 12  # values across a tensor's strip, and its height, in the picture of a token
LADDER_CLOCK = 100e6  # Hz, at which its tokens a second are stated


def hue(number: int, count: int) -> str:
    """Return a colour for one of several things, readable on light and dark pages."""
    return f"hsl({round(360 * number / max(1, count))} 62% {(48, 60)[number % 2]}%)"


def units_at_work(timeline: Mapping[str, Any]) -> str:
    """Return when each unit works on one token, with the engine's kinds of work in colour and its
    gaps named, and a table of what it waits for.
    """
    total, spans, gaps = int(timeline["cycles"]), timeline["spans"], timeline["gaps"]
    units = [unit for unit in UNITS if any(span["unit"] == unit for span in spans)]
    works = list(dict.fromkeys(span["work"] for span in spans if span["unit"] == "engine"))

    def across(cycle: float) -> float:
        return LEFT + cycle / total * (WIDTH - LEFT - 10)

    parts = []
    for number, unit in enumerate(units):
        y = 16 + ROW * number
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(unit)}</text>')
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y + ROW - 2}" y2="{y + ROW - 2}"/>')
        for span in (span for span in spans if span["unit"] == unit):
            name = span["work"]
            colour = hue(works.index(name), len(works)) if name in works else "var(--quiet)"
            x, width = across(span["begin"]), across(span["end"] + 1) - across(span["begin"])
            where = f"{unit}, {name} of layer {int(span['layer']) + 1}: cycles {span['begin']} to {span['end']}"
            parts.append(
                f'<rect x="{x:.2f}" y="{y}" width="{max(width, 0.4):.2f}" height="{ROW - 5}" fill="{colour}" '
                f'fill-opacity="{1 if unit == "engine" else 0.55}"><title>{escape(where)}</title></rect>'
            )
    bottom = 16 + ROW * len(units)
    for gap in gaps:
        if gap["cycles"] < SMALLEST_GAP * total:
            continue
        x, width = across(gap["begin"]), across(gap["begin"] + gap["cycles"]) - across(gap["begin"])
        y = 16 + ROW * units.index("engine")
        said = f"waits {gap['cycles']} cycles for {gap['event']}"
        parts.append(
            f'<rect class="frame" x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 5}"><title>{escape(said)}</title></rect>'
            f'<text class="token" x="{x + width / 2:.1f}" y="{y + 11}" text-anchor="middle">{int(gap["cycles"])}</text>'
        )
    for tick in range(0, total + 1, max(1, 100 * (total // 800) or total // 8)):
        parts.append(
            f'<text class="tick" x="{across(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:,}</text>'
        )
    parts.append(f'<text class="axis" x="{WIDTH / 2}" y="{bottom + 32}" text-anchor="middle">cycles</text>')
    waited: Counter[str] = Counter()
    for gap in gaps:
        waited[gap["event"]] += gap["cycles"]
    idle = sum(waited.values())
    rows = [(event, f"{cycles:,}", f"{cycles / total:.1%}") for event, cycles in waited.most_common()]
    legend = "".join(
        f'<span><i style="background:{hue(number, len(works))}"></i>{escape(work)}</span>'
        for number, work in enumerate(works)
    )
    return (
        f"<h3>The units over one token</h3><p>Position {int(timeline['position'])} of the context, {total:,} cycles from "
        f"the token taken to the next one given, drawn from the program that the circuit executes. The engine works in "
        f"{total - idle:,} of them at most; where it waits, its row is empty, with the cycles of the longer gaps.</p>"
        f'<p class="legend">{legend}</p>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="units over {total} cycles">'
        f"{''.join(parts)}</svg>" + table(("the engine waits for", "cycles", "of the token"), rows, numeric=(1, 2))
    )


def layers(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return one token layer by layer: every stage's values in floats and in integers, and their
    difference, as colours, with the circuit's checksum.
    """
    columns = ("floating point", "integers", "difference")
    strips = [np.zeros((len(stages), STRIP)) for _ in columns]
    rows, top = [], 18
    for number, stage in enumerate(stages):
        exact, given = (np.array(stage[kind], np.float64) for kind in ("exact", "integers"))
        spread = np.arange(STRIP) * len(exact) // STRIP
        for strip, values in zip(strips, (exact, given, given - exact), strict=True):
            strip[number] = (values / (stage["size"] or 1.0))[spread]
        ratio = "exact" if stage["decibels"] is None else f"{stage['decibels']:.1f} dB"
        y = top + STAGE * number + STAGE - 2
        rows.append(
            f'<text class="token" x="0" y="{y}">{escape(str(stage["name"]))}</text>'
            f'<text class="token" x="{WIDTH - 116}" y="{y}" text-anchor="end">{ratio}</text>'
            f'<text class="token" x="{WIDTH - 60}" y="{y}">{escape(str(stage["checksum"]))}</text>'
        )
    left, width = 190, 130
    pictures = []
    for place, (title, strip) in enumerate(zip(columns, strips, strict=True)):
        x = left + (width + 10) * place
        pictures.append(f'<text class="axis" x="{x}" y="12">{title}</text>')
        pictures.append(f'<rect class="frame" x="{x}" y="{top}" width="{width}" height="{STAGE * len(stages)}"/>')
        for sign, colour in ((1, (214, 96, 28)), (-1, (28, 110, 214))):
            opacity = (np.sqrt(np.clip(sign * strip, 0, 1)) * 255).astype(np.uint8)
            picture = base64.b64encode(alpha_png(opacity, colour)).decode()
            pictures.append(
                f'<image class="heat" x="{x}" y="{top}" width="{width}" height="{STAGE * len(stages)}" '
                f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>'
            )
    pictures.append(f'<text class="axis" x="{WIDTH - 60}" y="12">circuit</text>')
    worst = min(
        (stage for stage in stages if stage["decibels"] is not None), key=lambda one: one["decibels"], default=None
    )
    least = f" The least is {worst['decibels']:.1f} dB, of {escape(str(worst['name']))}." if worst else ""
    return (
        f"<h3>One token layer by layer</h3><p>A line is a tensor, from the embedding to the logits. A colour is a value: "
        f"orange above zero, blue below, its strength the square root of the value over the tensor’s largest. Behind them "
        f"stand the ratio of signal to noise, and the checksum that the circuit made of its words at that stage: each is "
        f"the integer model’s.{least}</p>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {top + STAGE * len(stages) + 4}" role="img" '
        f'aria-label="{len(stages)} stages of one token">{"".join(pictures)}{"".join(rows)}</svg>'
    )


def ladder(file: Path | None = None) -> str:
    """Return how each step of the machine's making changed its cycles, lookup tables and tokens a
    second: a bar of cycles for each; nothing where the file of figures is not installed.
    """
    file = file or LADDER
    if not file.exists():
        return ""
    figures = read_json(file)
    steps = figures["steps"]
    most = max(step["cycles"] for step in steps)
    bars = WIDTH - 200
    parts = []
    for number, step in enumerate(steps):
        y, width = 40 * number, bars * step["cycles"] / most
        luts = "" if step["luts"] is None else f", {step['luts']:,} LUTs"
        speed = f"{step['cycles']:,} cycles, {LADDER_CLOCK / step['cycles']:,.0f}/s{luts}"
        parts.append(
            f'<text class="axis" x="0" y="{y + 13}">{escape(step["step"])}</text>'
            f'<rect x="0" y="{y + 18}" width="{width:.1f}" height="13" fill="var(--accent)"/>'
            f'<text class="tick" x="{width + 6:.1f}" y="{y + 29}">{escape(speed)}</text>'
        )
    return (
        f"<h3>How the machine got faster</h3><p>{escape(figures['model'])}, step by step: {escape(figures['what'])}; tokens a "
        f"second at {LADDER_CLOCK / 1e6:g} MHz. Lookup tables are those that were counted.</p>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {40 * len(steps)}" role="img" '
        f'aria-label="cycles a token of {len(steps)} steps">{"".join(parts)}</svg>'
    )


def placed(placement: Mapping[str, Any] | None) -> str:
    """Return the floorplan, coloured by core, with the slowest path on it, the path core by core,
    and a table of what each core takes; nothing without a placement.
    """
    if not placement or not placement["tiles"]:
        return ""
    cores: Mapping[str, Mapping[str, int]] = placement["cores"]
    names = list(cores)
    kinds = ("luts", "flip_flops", "block_rams", "multipliers")
    shown = [(name, cores[name]) for name in names[:LISTED]]
    if rest := names[LISTED:]:
        shown.append((f"{len(rest)} others", {kind: sum(cores[name][kind] for name in rest) for kind in kinds}))
    rows = [
        (
            f'<span class="legend"><i style="background:{colour_of(number)}"></i></span>{escape(name)}',
            *(f"{count[kind]:,}" for kind in kinds),
        )
        for number, (name, count) in enumerate(shown)
    ]
    headings = ("core", "lookup tables", "flip-flops", "block RAMs", "multipliers")
    return (
        "<h3>What each core takes</h3>"
        + table(headings, rows, numeric=(1, 2, 3, 4), safe=(0,))
        + "<h3>Where the cores lie</h3>"
        + floorplan(placement["tiles"], placement["path"], names)
        + slowest_path(placement["path"])
    )


def colour_of(number: int) -> str:
    """Return the colour of a core, by its place in the table."""
    return hue(number, LISTED) if number < LISTED else "var(--quiet)"


def floorplan(tiles: Sequence[Sequence[int]], path: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return the chip's occupied tiles, each in the colour of the core with most cells there."""
    right, bottom = max(tile[0] for tile in tiles), max(tile[1] for tile in tiles)
    parts = [
        f'<g fill="{colour_of(core)}"><title>{escape(names[core])}</title>'
        + "".join(f'<rect x="{x}" y="{y}" width="1" height="1"/>' for x, y, _ in found)
        + "</g>"
        for core, found in groupby(sorted(tiles, key=lambda tile: tile[2]), key=lambda tile: tile[2])
    ]
    if path:
        line = " ".join(f"{step['x'] + 0.5},{step['y'] + 0.5}" for step in path)
        parts.append(f'<polyline class="path" points="{line}"/>')
    return (
        f'<svg class="chart floorplan" viewBox="0 0 {right + 1} {bottom + 1}" role="img" '
        f'aria-label="floorplan of {len(names)} cores">'
        f'<rect class="frame" width="{right + 1}" height="{bottom + 1}"/>{"".join(parts)}</svg>'
    )


def slowest_path(path: Sequence[Mapping[str, Any]]) -> str:
    """Return the slowest path core by core: how long it is in each, and how much is wire."""
    if not path:
        return ""
    rows = []
    for core, found in groupby(path, key=lambda step: step["core"]):
        steps = list(found)
        wire = sum(step["nanoseconds"] for step in steps if step["wire"])
        rows.append((core, f"{sum(step['nanoseconds'] for step in steps):.2f}", f"{wire:.2f}"))
    total = sum(step["nanoseconds"] for step in path)
    return f"<p>The slowest path, drawn as a line, takes {total:.2f} ns, in this order:</p>" + table(
        ("in the core", "ns", "of them wire"), rows, numeric=(1, 2)
    )
