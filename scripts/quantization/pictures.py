"""Pictures of a quantized model: histograms over the range, noise by tensor, loss by width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fixedpoint import QFormat, QuantizedTransformer
from fixedpoint.quantization.analysis import TensorComparison
from fixedpoint.quantization.calibration import Calibration
from fixedpoint.quantization.histogram import Histogram
from fixedpoint.quantization.quantize import named_linears
from model.training.pictures import new_figure, save_figure

BARS = 160
SHOWN = 1.25  # of the representable range, so that what saturates is seen beyond its ends


def draw_activations(calibration: Calibration, path: Path) -> None:
    """Draw each activation's histogram on the calibration text over its format's range."""
    tensors = {tensor.name: tensor for tensor in calibration.tensors}
    rows = [over_range(calibration.histograms[name], QFormat.parse(tensors[name].format)) for name in tensors]
    labels = [f"{name}   {tensor.format}   {tensor.saturated:.2%}" for name, tensor in tensors.items()]
    _draw_rows(
        labels, rows, "value over the largest of its format; beyond ±1 it saturates (fraction at the names)", path
    )


def over_range(histogram: Histogram, target: QFormat) -> np.ndarray:
    """Return a histogram's counts (BARS,) over ±1.25 times a range, clipped at the ends."""
    places = (histogram.middles / (SHOWN * -target.minimum) + 1) / 2 * BARS
    bars = np.clip(np.floor(places), 0, BARS - 1).astype(np.int64)
    return np.bincount(bars, weights=histogram.counts, minlength=BARS)


def draw_weights(quantized: QuantizedTransformer, path: Path) -> None:
    """Draw how often each integer occurs in each layer, over the range of its width."""
    labels, rows = [], []
    for name, layer in named_linears(quantized).items():
        code = QFormat(layer.weight_bits, 0)
        counts = np.bincount(layer.weight.reshape(-1) - code.minimum_integer, minlength=1 << code.bits)
        labels.append(f"{name}   {layer.weight_bits} bits   {counts[[0, -1]].sum() / layer.weight.size:.2%}")
        bars = (np.arange(BARS) + 0.5) / BARS * 2 * SHOWN - SHOWN  # each integer is a block of bars
        integers = np.floor(bars * -code.minimum_integer + 0.5).astype(np.int64) - code.minimum_integer
        inside = (integers >= 0) & (integers < len(counts))
        rows.append(np.where(inside, counts[np.clip(integers, 0, len(counts) - 1)], 0))
    _draw_rows(labels, rows, "integer over the largest of its width (fraction at the ends at the names)", path)


def _draw_rows(labels: Sequence[str], rows: Sequence[np.ndarray], about: str, path: Path) -> None:
    """Draw counts as colours, each row over its own largest count."""
    figure = new_figure(11, 1 + 0.2 * len(rows))
    axes = figure.add_subplot()
    shares = np.array([row / max(row.max(), 1) for row in rows])
    picture = np.log10(np.maximum(shares, 1e-6))
    picture[shares == 0] = np.nan
    image = axes.imshow(
        picture, aspect="auto", extent=(-SHOWN, SHOWN, len(rows) - 0.5, -0.5), cmap="viridis", interpolation="nearest"
    )
    for rail in (-1, 1):
        axes.axvline(rail, color="tab:red", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel(about)
    figure.colorbar(image, ax=axes, label="values, log10 of the row's fullest bar", pad=0.01)
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


def draw_sweep(
    series: Mapping[str, Sequence[tuple[str, float, int]]], front: Sequence[tuple[str, str, float, int]], path: Path
) -> None:
    """Draw loss above float over width, a panel for each series of (width, nats, bytes), and over
    bytes, all series in one panel with the front through the best.
    """
    figure = new_figure(4.2 * (1 + len(series)), 4)
    panels = figure.subplots(1, 1 + len(series))
    for axes, (name, points) in zip(panels, series.items(), strict=False):
        axes.plot([label for label, _, _ in points], [loss for _, loss, _ in points], marker="o", color="tab:blue")
        for label, loss, size in points:
            axes.annotate(
                f"{loss:+z.4f}\n{size / 1024:,.0f} KiB", (label, loss), textcoords="offset points", xytext=(0, 8),
                fontsize=6, ha="center",
            )  # fmt: skip
        axes.set(xlabel=name, title=name.partition(",")[0])
        panels[-1].plot([size / 1024 for _, _, size in points], [loss for _, loss, _ in points], "o", label=name)
    panels[-1].plot([size / 1024 for *_, size in front], [loss for _, _, loss, _ in front], color="black", zorder=0)
    for _, label, loss, size in front:
        panels[-1].annotate(label, (size / 1024, loss), textcoords="offset points", xytext=(0, 8), fontsize=7)
    panels[-1].set(xlabel="KiB", title="bytes and loss")
    panels[-1].legend(fontsize=6)
    for axes in panels:
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.margins(x=0.1, y=0.2)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("loss above float, nats a token")
    save_figure(figure, path)
