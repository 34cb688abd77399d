"""Charts for the report as inline SVG, coloured by the page's style sheet, without a library.

All text that comes from outside is escaped here; callers pass it as it is.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: What the legend says.
        points: (x, y) pairs, x ascending; points that are not finite are left out.
        style: CSS class of the line, `faint` or `strong`.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False) -> str:
    """Return a line chart of series over shared axes, with each line's last value beside it.

    Args:
        series: The lines.
        x_label: What x is.
        y_label: What y is.
        log_x: Whether the axis of x is logarithmic; points at or below 0 are then left out.

    Raises:
        ValueError: No series has a finite point.
    """
    finite = [
        (one, [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)])
        for one in series
    ]
    drawn = [(one, points) for one, points in finite if points]
    if not drawn:
        raise ValueError("a line chart needs at least one finite point")
    width, height, left, right, top, bottom = 760, 320, 56, 92, 14, 46
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_low, x_high = min(xs) if log_x else min(0.0, *xs), max(xs) or 1.0
    x_ticks, y_ticks = decades(x_low, x_high) if log_x else nice_ticks(x_low, max(xs)), nice_ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    scale = math.log if log_x else float

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - scale(x_low)) / ((scale(x_high) - scale(x_low)) or 1.0)
        up = (y - y_low) / ((y_high - y_low) or 1.0)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if tick > x_high:
            continue
        x, _ = place(tick, y_low)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:,.10g}</text>'
        )
    middle = (top + height - bottom) / 2
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2:.1f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    labels = []
    for one, points in drawn:
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
        x, y = places[-1]
        parts.append(f'<circle class="end {one.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        labels.append((y, x + 9, one, points[-1][1]))
    lowest = (
        height - bottom - 14.0
    )  # a label is two lines of 14 units; they stack upwards from the axis without touching
    for y, x, one, value in sorted(labels, key=lambda label: -label[0]):
        label_y = min(y, lowest)
        lowest = label_y - 30
        parts.append(
            f'<text class="legend {one.style}" x="{x:.1f}" y="{label_y:.1f}">{escape(one.name)}'
            f'<tspan x="{x:.1f}" dy="14">{value:.3f}</tspan></text>'
        )
    summary = escape(
        f"{y_label} over {x_label}: " + ", ".join(f"{one.name} ends at {points[-1][1]:.3f}" for one, points in drawn),
        quote=True,
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{summary}">'
        + "".join(parts)
        + "</svg>"
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five ticks, 1, 2 or 5 times a power of ten apart, that enclose [low, high]."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(index * step, digits) for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten in [low, high], for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0**power) <= high]


def heat_map(weights: np.ndarray, labels: Sequence[str], title: str) -> str:
    """Return a heat map of one attention head.

    Args:
        weights: Attention weights (T, T) from 0 to 1; row = query token, column = key token.
        labels: The T tokens.
        title: What stands above.
    """
    size = len(labels)
    if weights.shape != (size, size):
        raise ValueError(f"a heat map of {size} tokens needs weights ({size}, {size}), got {weights.shape}")
    margin, cell = 20, 13  # in the drawing's units, as all lengths here
    edge = size * cell
    picture = base64.b64encode(alpha_png(np.clip(np.sqrt(weights) * 255, 0, 255).astype(np.uint8))).decode()
    parts = [
        f'<text class="axis" x="{margin}" y="11">{escape(title)}</text>',
        f'<rect class="frame" x="{margin}" y="{margin * 2}" width="{edge}" height="{edge}"/>',
        f'<image class="heat" x="{margin}" y="{margin * 2}" width="{edge}" height="{edge}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>',
    ]
    for index, label in enumerate(labels):
        shown = escape(visible(label))
        center = index * cell + cell / 2
        parts.append(
            f'<text class="token" x="{margin + center:.1f}" y="{margin * 2 - 5}" text-anchor="middle">{shown}</text>'
        )
        parts.append(
            f'<text class="token" x="{margin - 9}" y="{margin * 2 + center + 3.5:.1f}" text-anchor="middle">{shown}</text>'
        )
    box = f"0 0 {edge + margin + 2} {edge + margin * 2 + 2}"
    return (
        f'<svg class="map" viewBox="{box}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def visible(token: str) -> str:
    """Return a token with its white space made visible."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def alpha_png(opacity: np.ndarray, colour: tuple[int, int, int] = (214, 96, 28)) -> bytes:
    """Return a PNG (RFC 2083) of one colour with opacity (H, W), uint8, for light or dark pages."""
    height, width = opacity.shape
    rows = np.zeros((height, width, 4), dtype=np.uint8)
    rows[..., :3] = colour
    rows[..., 3] = opacity
    # Each row starts with the number of its filter; 0 is none.
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits a channel, RGBA
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def bar(fraction: float) -> str:
    """Return a horizontal bar filled to a fraction of its width."""
    filled = 100 * min(1.0, max(0.0, fraction))
    return f'<span class="bar"><span style="width:{filled:.1f}%"></span></span>'
