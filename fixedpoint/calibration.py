"""Choosing the activations' formats by running the float model on calibration text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model import Transformer

from .errors import QuantizationError
from .qformat import Overflow, QFormat, Rounding, covering_fraction
from .row_scales import WeightBits, storage_bits

FINER_CANDIDATES = 3  # the covering power of two and the next two below it

# The residual stream saturates for good once it leaves its range, and 16 bits have precision to spare: a quarter of
# headroom above the largest value that calibration saw.
RESIDUAL_HEADROOM = 1.25
# Activations below 2**-13 are next to nothing beside a LayerNorm's, and finer formats would cost the exponential range.
MAXIMUM_FRACTION = 20


@dataclass(frozen=True)
class QuantizationSettings:
    """Widths of the quantized model.

    Attributes:
        weight_bits: Linear weights, 2 to 8, or "ternary": −1, 0 and 1, stored in two bits.
        activation_bits: Activations between layers, 4 to 8.
        residual_bits: The residual stream and the logits, 8 to 16.
        embedding_bits: Token and position tables, 2 to 8.
    """

    weight_bits: WeightBits = 8
    activation_bits: int = 8
    residual_bits: int = 16
    embedding_bits: int = 8

    def __post_init__(self) -> None:
        storage_bits(self.weight_bits)
        for name, lowest, highest in (
            ("activation_bits", 4, 8),
            ("residual_bits", 8, 16),
            ("embedding_bits", 2, 8),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise QuantizationError(f"{name} must be a whole number from {lowest} to {highest}, not {value!r}")


@dataclass(frozen=True)
class TensorFormat:
    """The format chosen for a tensor, and how well it fits.

    Attributes:
        name: The tensor.
        shape: Its shape; for an activation the channels of one token.
        format: The Q-format, or several joined by "…" where rows differ.
        signal_to_noise: Signal-to-quantization-noise ratio in dB; infinite when nothing was lost.
        saturated: Fraction of the values at the ends of the range after clipping there.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    signal_to_noise: float
    saturated: float


@dataclass(frozen=True)
class Calibration:
    """Formats of all activations.

    Attributes:
        formats: Format by tensor name, as `Transformer.forward` names them, and `residual`.
        tensors: The same with measured quality, for reports.
    """

    formats: Mapping[str, QFormat]
    tensors: tuple[TensorFormat, ...]


def calibrate(model: Transformer, tokens: np.ndarray, settings: QuantizationSettings) -> Calibration:
    """Run the float model on tokens and choose each activation's format by least squared error.

    Args:
        model: The trained model.
        tokens: Calibration windows (N, T), N >= 1, 1 <= T <= max_seq_len.
        settings: Widths.

    Raises:
        QuantizationError: No tokens, or an activation that is not finite.
    """
    windows = np.asarray(tokens)
    if windows.ndim != 2 or 0 in windows.shape:
        raise QuantizationError(
            f"calibration needs at least one whole window of tokens (N, T); got an array of shape {windows.shape}. "
            "Use a longer text."
        )
    seen: dict[str, list[np.ndarray]] = {}

    def observe(name: str, values: np.ndarray) -> None:
        if not name.endswith("attention.weights"):
            seen.setdefault(name, []).append(np.array(values, dtype=np.float64))  # a copy: buffers are reused

    for start in range(0, len(windows), 16):
        model.forward(windows[start : start + 16], observe=observe)
    activations = {name: np.concatenate(parts) for name, parts in seen.items()}
    for name, values in activations.items():
        if not np.isfinite(values).all():
            raise QuantizationError(
                f"activation {name} is NaN or infinite on the calibration text; the model cannot be quantized"
            )
        if name.endswith("attention.query"):
            # log2(e) / sqrt(d) moves into the query projection: scores then are base-2 logarithms.
            values *= query_scale(model.config.embed_dim // model.config.num_heads)

    residual_names = [name for name in activations if name == "embedding" or name.endswith("_residual")]
    largest = max(float(np.abs(activations[name]).max()) for name in residual_names)
    formats = {"residual": _covering(largest * RESIDUAL_HEADROOM, settings.residual_bits)}
    tensors = [_assess(name, activations[name], formats["residual"]) for name in residual_names]
    for name, values in activations.items():
        if name in residual_names or name.endswith(("attention.output", "feed_forward.down")):
            continue  # these are produced in the residual's format
        if name == "logits":
            formats[name] = _covering(float(np.abs(values).max()) * RESIDUAL_HEADROOM, settings.residual_bits)
        else:
            formats[name] = least_squares_format(values, settings.activation_bits)
        tensors.append(_assess(name, values, formats[name]))
    return Calibration(formats, tuple(tensors))


def query_scale(head_dim: int) -> float:
    """Return log2(e) / sqrt(d), the factor between q·k and a base-2 softmax exponent."""
    return math.log2(math.e) / math.sqrt(head_dim)


def least_squares_format(values: np.ndarray, bits: int) -> QFormat:
    """Return the signed format of least squared rounding error, among the covering power of two and the next two below it."""
    best = _covering(float(np.abs(values).max()), bits)
    candidates = [QFormat(bits, min(best.fraction + finer, MAXIMUM_FRACTION)) for finer in range(FINER_CANDIDATES)]
    return min(candidates, key=lambda candidate: _noise(values, candidate))


def _covering(magnitude: float, bits: int) -> QFormat:
    return QFormat(bits, min(covering_fraction(magnitude, bits), MAXIMUM_FRACTION))


def _round_trip(values: np.ndarray, target: QFormat) -> np.ndarray:
    return target.dequantize(target.quantize(values, Rounding.HALF_UP, Overflow.SATURATE))


def _noise(values: np.ndarray, target: QFormat) -> float:
    return float(((values - _round_trip(values, target)) ** 2).sum())


def _assess(name: str, values: np.ndarray, target: QFormat) -> TensorFormat:
    clipped = (values < target.minimum) | (values > target.maximum)
    return TensorFormat(
        name,
        (values.shape[-1],),
        str(target),
        signal_to_noise(values, _round_trip(values, target)),
        float(clipped.mean()),
    )


def signal_to_noise(signal: np.ndarray, approximation: np.ndarray) -> float:
    """Return 10·log10(Σ signal² / Σ (signal − approximation)²) in dB; infinite without noise."""
    noise = float(((signal - approximation) ** 2).sum())
    power = float((np.asarray(signal, dtype=np.float64) ** 2).sum())
    if noise == 0:
        return math.inf
    return -math.inf if power == 0 else 10 * math.log10(power / noise)
