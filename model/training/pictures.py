"""Pictures of training; matplotlib is imported when one is drawn, only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import atomic_write
from .log import LogRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..transformer import Transformer


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")


def plot_losses(rows: Sequence[LogRow], path: str | Path) -> None:
    """Draw training loss, held-out loss and learning rate over the steps."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(
        [row.step for row in rows], [row.training_loss for row in rows], label="training", color="tab:blue", linewidth=1
    )
    held_out = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), label="held out", color="tab:orange", marker="o", markersize=3)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(
        [row.step for row in rows],
        [row.learning_rate for row in rows],
        color="tab:gray",
        linestyle=":",
        label="learning rate",
    )
    rates.set_ylabel("learning rate")
    lines = axes.get_lines() + rates.get_lines()
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    save_figure(figure, path)


def attention_weights(model: Transformer, tokens: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Return each layer's attention weights (H, T, T) for one sequence of tokens (T,)."""
    weights: list[np.ndarray] = []

    def observe(name: str, array: np.ndarray) -> None:
        if name.endswith("attention.weights"):
            weights.append(array[0])  # (1, H, T, T) -> (H, T, T)

    model.forward(np.asarray(tokens)[None], observe=observe)  # (T,) -> (1, T)
    return weights
