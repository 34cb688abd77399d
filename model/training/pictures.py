"""Pictures of training and of the model; matplotlib is imported when one is drawn, only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import atomic_write
from .log import LogRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..tokenizers.tokenizer import Tokenizer
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


def plot_attention(model: Transformer, tokenizer: Tokenizer, text: str, path: str | Path) -> None:
    """Draw the attention weights of each layer and head for a text, with its tokens on the axes.

    The last max_seq_len tokens of the text are used.
    """
    tokens = tokenizer.encode(text)[-model.config.max_seq_len :]
    labels = [_plain(tokenizer.token_label(token)) for token in tokens]
    layers = attention_weights(model, tokens)
    heads = len(layers[0])
    size = max(2.2, 0.16 * len(tokens))
    figure = new_figure(size * heads, size * len(layers))
    for row, weights in enumerate(layers):
        for column, matrix in enumerate(weights):
            axes = figure.add_subplot(len(layers), heads, row * heads + column + 1)
            axes.imshow(matrix, cmap="magma", vmin=0, vmax=1)
            axes.set_title(f"layer {row + 1}, head {column + 1}", fontsize=8)
            axes.set_xticks(range(len(labels)), labels, fontsize=6, family="monospace")
            axes.set_yticks(range(len(labels)), labels, fontsize=6, family="monospace")
            axes.tick_params(length=0, pad=1)
    save_figure(figure, path)


def plot_embeddings(model: Transformer, tokenizer: Tokenizer, path: str | Path, most: int = 200) -> None:
    """Draw the first tokens' embeddings in the plane of their two principal components."""
    table = model.parameters["token_embedding"][:most].astype(np.float64)
    centred = table - table.mean(axis=0)
    _, strengths, directions = np.linalg.svd(centred, full_matrices=False)
    # (tokens, C) @ (C, 2) -> (tokens, 2), or fewer columns for a model one channel wide
    places = centred @ directions[:2].T
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    share = strengths**2 / max(1e-30, (strengths**2).sum())
    figure = new_figure(8, 8)
    axes = figure.add_subplot()
    axes.scatter(places[:, 0], places[:, 1], s=4, color="tab:blue")
    for token, (x, y) in enumerate(places):
        axes.annotate(_plain(tokenizer.token_label(token)), (x, y), fontsize=9, family="monospace")
    names = [f"principal component {index + 1} ({part:.0%} of the variance)" for index, part in enumerate(share[:2])]
    axes.set(title="token embeddings", xlabel=names[0], ylabel=names[-1])
    save_figure(figure, path)


def plot_statistics(
    model: Transformer, inputs: np.ndarray, targets: np.ndarray, path: str | Path
) -> dict[str, dict[str, float]]:
    """Draw and return the RMS of each activation and of each parameter's gradient on a batch.

    Args:
        model: The model.
        inputs: Tokens (B, T).
        targets: Their successors (B, T).
        path: The picture.
    """
    activations: dict[str, float] = {}

    def observe(name: str, array: np.ndarray) -> None:
        activations[name] = root_mean_square(array)

    model.forward(inputs, observe=observe)
    _, gradients = model.loss_and_gradients(inputs, targets)
    statistics = {"activations": activations, "gradients": {name: root_mean_square(g) for name, g in gradients.items()}}
    figure = new_figure(14, 0.16 * max(map(len, statistics.values())) + 1)
    for column, (title, values) in enumerate(statistics.items()):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.barh(range(len(values)), [max(value, 1e-30) for value in values.values()], color="tab:blue")
        axes.set_yticks(range(len(values)), list(values), fontsize=6)
        axes.invert_yaxis()
        axes.set(title=f"{title}: root mean square", xscale="log")
    save_figure(figure, path)
    return statistics


def root_mean_square(array: np.ndarray) -> float:
    """Return sqrt(mean(x²)) in double precision."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def _plain(label: str) -> str:
    """Return a label in which matplotlib sees no formula."""
    return label.replace("$", r"\$")
