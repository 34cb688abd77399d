"""Bits against loss: `positron quantize --sweep`.

One width at a time is varied; all else stays. Every point that was measured is kept in
RUN/quantization_sweep.json, so the same command after an interruption measures only what is
missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fixedpoint.fast.transformer import prepared
from fixedpoint.quantization.analysis import storage_bytes
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.overrides import Overrides
from fixedpoint.quantization.quantize import quantize_transformer
from model.data import windows
from model.errors import InputError
from model.files import read_json
from model.run import RunDirectory
from model.training.evaluation import evaluate_loss
from model.transformer import Transformer
from scripts.output import format_table, write_json
from scripts.quantization.pictures import draw_sweep

WEIGHT_BITS = (8, 7, 6, 5, 4, 3, 2, "ternary")
SERIES: Mapping[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "weight bits, compensated": (("weight_bits", WEIGHT_BITS), ("rounding", ("compensated",))),
    "weight bits, to nearest": (("weight_bits", WEIGHT_BITS), ("rounding", ("nearest",))),
    "activation bits": (("activation_bits", (8, 7, 6, 5, 4)),),
    "residual bits": (("residual_bits", (16, 14, 12, 10, 8)),),
}


def sweep(
    directory: RunDirectory,
    model: Transformer,
    model_sha256: str,
    tokens: np.ndarray,
    settings: QuantizationSettings,
    overrides: Overrides,
) -> dict[str, Any]:
    """Measure every point on the held-out text; print, draw and return the figures."""
    path, picture = directory.path / "quantization_sweep.json", directory.path / "quantization_sweep.png"
    held_out = directory.load_validation_tokens(model.config.vocab_size)
    inputs, targets = windows(held_out, model.config.max_seq_len)
    made_from = {"model_sha256": model_sha256, "calibration_windows": len(tokens), "overrides": overrides.to_dict()}
    figures = _measured(path, made_from)
    if figures.get("float_loss") is None:
        figures["float_loss"] = evaluate_loss(model, held_out)
    plan = {name: points(series, settings) for name, series in SERIES.items()}
    known = {key(point["settings"]) for point in figures["points"]}
    wanted = {
        key(asdict(one)): one for series in plan.values() for one in series.values() if key(asdict(one)) not in known
    }
    for one in tqdm(wanted.values(), desc="sweep", unit="point", leave=False, disable=None):
        quantized = quantize_transformer(model, calibrate(model, tokens, one, overrides), one)
        loss = prepared(quantized).loss(inputs, targets)
        figures["points"].append({"settings": asdict(one), "loss": loss, "bytes": storage_bytes(quantized)})
        write_json(path, figures)
    series = measured_series(figures, settings)
    front = pareto_front(series)
    draw_sweep(series, front, picture)
    rows = [(name, label, f"{loss:+z.4f}", size) for name, line in series.items() for label, loss, size in line]
    print(format_table(("sweep", "bits", "loss above float", "bytes"), rows))
    print(f"float loss {figures['float_loss']:z.4f} nats over {targets.size:,} tokens")
    print(f"least loss for their bytes: {'; '.join(f'{name} {label}' for name, label, _, _ in front)}")
    print(f"figures: {path}")
    print(f"picture: {picture}")
    return figures | {"series": series, "front": front}


def measured_series(
    figures: Mapping[str, Any], settings: QuantizationSettings
) -> dict[str, list[tuple[str, float, int]]]:
    """Return the points (bits, loss above float in nats, bytes) that were measured, by series."""
    by_key = {key(point["settings"]): point for point in figures["points"]}
    series: dict[str, list[tuple[str, float, int]]] = {}
    for name, varied in SERIES.items():
        for label, one in points(varied, settings).items():
            if point := by_key.get(key(asdict(one))):
                series.setdefault(name, []).append((label, point["loss"] - figures["float_loss"], point["bytes"]))
    return series


def pareto_front(series: Mapping[str, Sequence[tuple[str, float, int]]]) -> list[tuple[str, str, float, int]]:
    """Return the points (series, label, loss, bytes) below the loss of all that are no larger."""
    points = [(name, *point) for name, line in series.items() for point in line]
    front: list[tuple[str, str, float, int]] = []
    for point in sorted(points, key=lambda point: (point[3], point[2])):
        if not front or point[2] < front[-1][2]:
            front.append(point)
    return front


def points(
    series: tuple[tuple[str, tuple[Any, ...]], ...], settings: QuantizationSettings
) -> dict[str, QuantizationSettings]:
    """Return a series' settings by label: its first field takes each value, the others have one."""
    (field, values), *fixed = series
    changed = replace(settings, **{name: value for name, (value,) in fixed})
    return {str(value): replace(changed, **{field: value}) for value in values}


def key(settings: Mapping[str, Any]) -> str:
    """Return what tells two points apart."""
    return repr(sorted(settings.items()))


def _measured(path: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an earlier sweep of the same model, or empty ones."""
    nothing = {**made_from, "float_loss": None, "points": []}
    if not path.is_file():
        return nothing
    figures = read_json(path)
    if any(figures.get(name) != value for name, value in made_from.items()):
        return nothing
    measured = figures.get("points")
    if not isinstance(measured, list) or not all(
        isinstance(point, dict) and set(point) == {"settings", "loss", "bytes"} for point in measured
    ):
        raise InputError(f"{path} was edited; remove it and sweep again")
    return figures
