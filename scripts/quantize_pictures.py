"""Pictures of a quantized model: histograms over the representable range, noise by tensor, loss by width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fixedpoint import QFormat, QuantizedTransformer
from fixedpoint.analysis import TensorComparison
from fixedpoint.calibration import Calibration
from fixedpoint.histogram import HALF, Histogram
from fixedpoint.quantize import named_linears
from model.pictures import new_figure, save_figure

COLUMNS = 6
BARS = 128


def draw_activations(calibration: Calibration, path: Path) -> None:
    """Draw each activation's values on the calibration text over the range of its format; what lies beyond the red rails saturates."""
    formats = {tensor.name: QFormat.parse(tensor.format) for tensor in calibration.tensors}
    saturated = {tensor.name: tensor.saturated for tensor in calibration.tensors}
    names = list(calibration.histograms)
    figure = new_figure(3 * COLUMNS, 1.9 * math.ceil(len(names) / COLUMNS))
    for index, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / COLUMNS), COLUMNS, index + 1)
        edges, counts = rebinned(calibration.histograms[name], formats[name])
        axes.stairs(counts, edges, fill=True, color="tab:blue")
        axes.set_yscale("log")
        for rail in (formats[name].minimum, formats[name].maximum):
            axes.axvline(rail, color="tab:red", linewidth=1)
        axes.set_title(f"{name}\n{formats[name]}, {saturated[name]:.2%} saturated", fontsize=7)
        axes.tick_params(labelsize=6)
    save_figure(figure, path)


def rebinned(histogram: Histogram, target: QFormat) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and counts of at most some 128 bars that show the whole of a histogram and of a format's range."""
    end = max(histogram.peak, -target.minimum)
    # Bars of a power of two of bins, so that every bin falls into one bar.
    together = 1 << max(0, math.ceil(math.log2(max(1.0, 2 * histogram.peak / math.ldexp(BARS, histogram.exponent)))))
    width = math.ldexp(together, histogram.exponent)
    counts = histogram.counts.reshape(-1, together).sum(axis=1)
    first = -(HALF // together)
    edges = np.arange(first, first + len(counts) + 1) * width
    shown = (edges[1:] > -end - width) & (edges[:-1] < end + width) & (counts > 0)
    lowest, highest = np.flatnonzero(shown)[[0, -1]]
    return edges[lowest : highest + 2], counts[lowest : highest + 1]


def draw_weights(quantized: QuantizedTransformer, path: Path) -> None:
    """Draw how often each integer occurs in each layer, over all that the width represents."""
    layers = named_linears(quantized)
    figure = new_figure(3 * COLUMNS, 1.9 * math.ceil(len(layers) / COLUMNS))
    for index, (name, layer) in enumerate(layers.items()):
        code = QFormat(layer.weight_bits, 0)
        axes = figure.add_subplot(math.ceil(len(layers) / COLUMNS), COLUMNS, index + 1)
        counts = np.bincount(layer.weight.reshape(-1) - code.minimum_integer, minlength=1 << code.bits)
        places = np.arange(code.minimum_integer, code.maximum_integer + 1)
        ends = counts[[0, -1]].sum() / layer.weight.size
        axes.stairs(counts, np.append(places, places[-1] + 1) - 0.5, fill=True, color="tab:green")
        axes.set_xlim(places[0] - 1, places[-1] + 1)
        axes.set_title(f"{name}\n{layer.weight_bits} bits, {ends:.2%} at an end", fontsize=7)
        axes.tick_params(labelsize=6)
    save_figure(figure, path)


def draw_tensor_noise(tensors: Sequence[TensorComparison], path: Path) -> None:
    """Draw the signal-to-noise ratio of each tensor in the order of the computation."""
    figure = new_figure(10, 0.6 + 0.17 * len(tensors))
    axes = figure.add_subplot()
    finite = [row.signal_to_noise if math.isfinite(row.signal_to_noise) else 0.0 for row in tensors]
    lowest = min(range(len(tensors)), key=lambda index: tensors[index].signal_to_noise)
    axes.barh(
        [row.name for row in tensors],
        finite,
        color=["tab:red" if i == lowest else "tab:blue" for i in range(len(finite))],
    )
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("float signal over fixed-point error, dB (all errors made before included; the worst in red)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def draw_sweep(series: Mapping[str, Sequence[tuple[str, float, int]]], path: Path) -> None:
    """Draw loss above float over widths, a panel a series of (width, difference in nats, bytes), sizes beside the points."""
    figure = new_figure(4.2 * len(series), 4)
    for index, (name, points) in enumerate(series.items()):
        axes = figure.add_subplot(1, len(series), index + 1)
        axes.plot([label for label, _, _ in points], [loss for _, loss, _ in points], marker="o", color="tab:blue")
        for label, loss, size in points:
            axes.annotate(
                f"{loss:+.4f}\n{size / 1024:,.0f} KiB", (label, loss), textcoords="offset points", xytext=(0, 8),
                fontsize=6, ha="center",
            )  # fmt: skip
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set(xlabel=name, title=name.partition(",")[0])
        axes.margins(x=0.1, y=0.2)
        axes.grid(alpha=0.3)
        if index == 0:
            axes.set_ylabel("loss above float, nats a token")
    save_figure(figure, path)
