"""Loss over bytes of several runs in one picture: `positron quantize RUN --sweep --beside RUN2 …`.

Float runs are shown with the points of their sweeps, runs that were trained for a number format
with the one point that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from model.errors import InputError
from model.files import file_digest, read_json
from model.run import RunDirectory
from model.training.pictures import new_figure, save_figure
from scripts.output import format_table
from scripts.quantization.options import load_number_format
from scripts.quantization.sweep import pareto_front
from scripts.runs import open_run, quantization_file

Series = Mapping[str, Sequence[tuple[str, float, int]]]


def compare_sizes(directory: RunDirectory, beside: Sequence[Path]) -> list[tuple[str, str, float, int]]:
    """Draw the runs' losses over their bytes, name and return the front (run, bits, loss, bytes).

    Raises:
        InputError: A run has not been quantized, or was measured on another text.
    """
    series = run_points([directory, *map(open_run, beside)])
    front = pareto_front(series)
    picture = directory.path / "quantization_front.png"
    draw_front(series, front, picture)
    rows = [
        (name, label, f"{loss:z.4f}", f"{size:,}", "front" if (name, label, loss, size) in front else "")
        for name, line in series.items()
        for label, loss, size in line
    ]
    print()
    print(format_table(("run", "weights", "loss", "bytes", ""), rows))
    print(f"least loss for their bytes: {'; '.join(f'{name} {label}' for name, label, *_ in front)}")
    print(f"picture: {picture}")
    return front


def run_points(runs: Sequence[RunDirectory]) -> dict[str, list[tuple[str, float, int]]]:
    """Return the points (bits, loss in nats, bytes) of each run, by its name."""
    series: dict[str, list[tuple[str, float, int]]] = {}
    text = [(file_digest(run.validation_tokens), run.load_tokenizer().fingerprint()) for run in runs]
    for run, mine in zip(runs, text, strict=True):
        if mine != text[0]:
            raise InputError(f"{run.path} has another held-out text than {runs[0].path}: their losses do not compare")
        name = run.path.resolve().name
        name = name if name not in series else str(run.path)
        trained = load_number_format(run) is not None
        series[name] = [_trained_point(run)] if trained else _swept_points(run)
    return series


def _trained_point(run: RunDirectory) -> tuple[str, float, int]:
    figures = _figures(run, quantization_file(run), f"positron quantize {quote(str(run.path))}")
    settings = figures["settings"]
    label = f"{settings['weight_bits']}, trained"
    return label, float(figures["comparison"]["fixed_loss"]), int(figures["storage_bytes"])


def _swept_points(run: RunDirectory) -> list[tuple[str, float, int]]:
    path = run.path / "quantization_sweep.json"
    figures = _figures(run, path, f"positron quantize {quote(str(run.path))} --sweep")

    def other_widths(point: Any) -> tuple[int, int]:
        return point["settings"]["activation_bits"], point["settings"]["residual_bits"]

    compensated = [point for point in figures["points"] if point["settings"]["rounding"] == "compensated"]
    widest = max(map(other_widths, compensated), default=None)
    # differ in the weights' bits
    chosen = [point for point in compensated if other_widths(point) == widest]
    return [(str(point["settings"]["weight_bits"]), point["loss"], point["bytes"]) for point in chosen]


def _figures(run: RunDirectory, path: Path, command: str) -> Any:
    """Return figures of the model that the run has now."""
    if path.is_file():
        figures = read_json(path)
        if figures.get("model_sha256") == file_digest(run.model_weights):
            return figures
    raise InputError(f"{run.path} has no figures of its model yet: {command}")


def draw_front(series: Series, front: Sequence[tuple[str, str, float, int]], path: Path) -> None:
    """Draw loss over bytes, a colour a run, with a line through the front."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for name, points in series.items():
        axes.plot([size / 1024 for *_, size in points], [loss for _, loss, _ in points], "o", label=name)
    axes.plot([size / 1024 for *_, size in front], [loss for *_, loss, _ in front], color="black", zorder=0)
    for _, label, loss, size in front:
        axes.annotate(label, (size / 1024, loss), textcoords="offset points", xytext=(0, 8), fontsize=8)
    low, high = min(loss for *_, loss, _ in front), max(loss for *_, loss, _ in front)
    axes.set(xlabel="KiB", ylabel="held-out loss, nats a token", ylim=(low - 0.05 * (high - low) - 0.01, high + 0.2))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save_figure(figure, path)
