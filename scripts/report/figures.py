"""The report's charts that matplotlib draws, as inline SVG in the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from model.training.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib knows no style sheets: these colours stand for the page's.
INK, QUIET, RULE = "#010203", "#010204", "#010205"
PAGE_COLOURS = {INK: "var(--ink)", QUIET: "var(--quiet)", RULE: "var(--rule)"}
# Of lines; readable on light and on dark paper.
COLOURS = ("#d6601c", "#3f7fd8", "#3a9a63", "#b457c2", "#b08a1e", "#3aa0a8", "#d8506f", "#7d7f8a")
WIDTH = 9.0  # inches, as wide as the page's column

Point = tuple[str, float, int]  # bits, loss in nats, bytes


def to_svg(figure: Figure, said: str) -> str:
    """Return a figure as an SVG element that a screen reader calls `said`."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": said}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue()[file.getvalue().index("<svg") :], flags=re.DOTALL)
    for colour, name in PAGE_COLOURS.items():
        text = text.replace(colour, name)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    # identifiers are of one page: the salt makes them differ between figures
    head = f'<svg class="chart" {box[0]} role="img" aria-label="{escape(said)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + re.sub(r"^<svg[^>]*>", "", text).strip()


def new_axes(height: float, columns: int = 1, **settings: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of the page's width and its axes, side by side, in the page's colours."""
    figure = new_figure(WIDTH, height)
    axes = list(figure.subplots(1, columns, squeeze=False, **settings)[0])
    for one in axes:
        one.grid(color=RULE, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=QUIET, labelsize=9)
        for spine in one.spines.values():
            spine.set_color(RULE)
    return figure, axes


def label(axes: Axes, x: str, y: str = "", title: str = "") -> None:
    """Name the axes."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.set_title(title, color=INK, fontsize=9)


def log_axis(axes: Axes) -> None:
    """Make x logarithmic, with 1, 2, 3 and 5 times the powers of ten written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, **settings: Any) -> None:
    """Name the lines."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, labelcolor=INK, frameon=False, **settings)


def noise_by_layer(tensors: Sequence[Mapping[str, Any]], what: str) -> str:
    """Return the signal-to-noise ratio of tensors over the layers, a line for each kind of tensor.

    Args:
        tensors: Rows of `quantization.json`: `name`, `signal_to_noise` in dB, None where exact.
        what: What they are.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    last = max((int(found[1]) for row in tensors if (found := _block(row["name"]))), default=0)
    for row in tensors:
        if row["signal_to_noise"] is None:
            continue
        found = _block(row["name"])
        kind, layer = (found[2], int(found[1]) + 1) if found else (row["name"], 0)
        if not found and row["name"].startswith(("final_norm", "logits")):
            layer = last + 2
        lines.setdefault(kind, []).append((layer, row["signal_to_noise"]))
    figure, (axes,) = new_axes(4.2)
    for number, (kind, points) in enumerate(lines.items()):
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=kind, color=COLOURS[number % 8])
    names = ["input", *(str(layer + 1) for layer in range(last + 1)), "output"]
    axes.set_xticks(range(len(names)), names)
    label(axes, "layer", "signal over rounding noise, dB")
    legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_svg(figure, f"Signal-to-noise ratio of {what} by layer")


def _block(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"blocks\.(\d+)\.(.*?)(?:\.weight)?", name)


def losses_by_bits(series: Mapping[str, Sequence[Point]]) -> str:
    """Return loss above float over bits, a panel for each series, all on one scale."""
    figure, panels = new_axes(3.4, len(series), sharey=True)
    for axes, (name, points) in zip(panels, series.items(), strict=True):
        axes.plot(
            [bits for bits, _, _ in points], [loss for _, loss, _ in points], "o-", markersize=4, color=COLOURS[0]
        )
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.margins(x=0.1, y=0.1)
        axes.tick_params(axis="x", labelsize=8)
        label(axes, name)
    panels[0].set_ylabel("loss above float, nats", color=INK, fontsize=9)
    return to_svg(figure, "Loss above float over bits: " + ", ".join(series))


def loss_over_bytes(series: Mapping[str, Sequence[Point]], front: Sequence[tuple[str, str, float, int]], y: str) -> str:
    """Return loss over bytes, a colour a series, with the front through the best.

    Args:
        series: Points by name.
        front: Of `pareto_front`.
        y: What the loss is.
    """
    figure, (axes,) = new_axes(4.0)
    for number, (name, points) in enumerate(series.items()):
        sizes, losses = [size / 1024 for *_, size in points], [loss for _, loss, _ in points]
        axes.plot(sizes, losses, "o", markersize=5, label=name, color=COLOURS[number % len(COLOURS)])
    axes.plot([size / 1024 for *_, size in front], [loss for *_, loss, _ in front], color=QUIET, zorder=0, linewidth=1)
    for _, bits, loss, size in front:
        place = size / 1024, loss
        axes.annotate(bits, place, textcoords="offset points", xytext=(0, 7), fontsize=8, color=INK, ha="center")
    log_axis(axes)
    axes.margins(x=0.08, y=0.15)
    label(axes, "KiB", y)
    legend(axes)
    return to_svg(figure, f"{y} over bytes; least for their bytes: " + ", ".join(f"{a} {b}" for a, b, *_ in front))


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> str:
    """Return lines over a logarithmic axis, each named."""
    figure, (axes,) = new_axes(3.8)
    for number, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[number % len(COLOURS)], linewidth=1.8)
    log_axis(axes)
    label(axes, x, y)
    legend(axes)
    return to_svg(figure, f"{y} over {x}: " + ", ".join(f"{name} ends at {p[-1][1]:.3f}" for name, p in series.items()))
