"""Choosing the activations' formats by running the float model on calibration text.

Nothing is kept but a histogram a tensor and, where weights are to be rounded with compensation, the
moments of each layer's inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from model import ModelConfig, Transformer
from model.parameters import parameter_shapes
from model.threads import one_blas_thread

from ..checks import is_whole
from ..errors import QuantizationError
from ..operators.attention import MAXIMUM_CONTEXT
from ..operators.row_norm import MAXIMUM_CHANNELS
from ..qformat import QFormat
from ..row_scales import WeightBits, storage_bits
from ..topology import (
    Step,
    block_steps,
    decoder_steps,
    linear_inputs,
    product_operands,
    residual_format_tensors,
    residual_stream,
)
from .error_compensation import Moments
from .histogram import CANDIDATES, MAXIMUM_FRACTION, Histogram, covering_format
from .overrides import ACTIVATION_BITS, TABLES, Overrides, ResolvedOverrides

# What saturates in the residual stream stays wrong, and logits are compared: a quarter of headroom
# above the largest value that calibration saw.
RESIDUAL_HEADROOM = 1.25
PERCENTILE = 99.99
# A format that is given may clip outliers, but not a tensor: what it saturates beyond this fraction
# is a mistake.
LARGEST_SATURATED = 0.01
BATCH = 16
CHOICES = {
    "calibration": ("least-squares", "maximum", "percentile"),
    "scales": ("row", "tensor"),
    "rounding": ("compensated", "sequential", "nearest"),
}


@dataclass(frozen=True)
class QuantizationSettings:
    """Widths of the quantized model, and how its formats are chosen.

    Attributes:
        weight_bits: Linear weights, 2 to 8, or "ternary": −1, 0 and 1, stored in two bits.
        activation_bits: Activations between layers, 4 to 10.
        residual_bits: The residual stream and the logits, 8 to 16.
        embedding_bits: Token and position tables, 2 to 8.
        calibration: An activation's format is that of least squared error, or it covers the largest
            value seen ("maximum") or 99.99 % of the values ("percentile").
        scales: Weights have a power of two a "row" or a "tensor".
        rounding: Weights are rounded one after the other, each making good the errors before it
            ("compensated"), layers too ("sequential"), or each weight to the "nearest".
    """

    weight_bits: WeightBits = 8
    activation_bits: int = 8
    residual_bits: int = 16
    embedding_bits: int = 8
    calibration: str = "least-squares"
    scales: str = "row"
    rounding: str = "compensated"

    def __post_init__(self) -> None:
        problems = []
        try:
            storage_bits(self.weight_bits)
            if is_whole(self.weight_bits):
                object.__setattr__(self, "weight_bits", int(self.weight_bits))
        except QuantizationError as error:
            problems.append(str(error))
        for name, lowest, highest in (
            ("activation_bits", *ACTIVATION_BITS),
            ("residual_bits", 8, 16),
            ("embedding_bits", 2, 8),
        ):
            value = getattr(self, name)
            if not is_whole(value) or not lowest <= value <= highest:
                problems.append(f"{name} must be a whole number from {lowest} to {highest}, not {value!r}")
            else:
                # NumPy's integers cannot be written as JSON
                object.__setattr__(self, name, int(value))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                problems.append(f"{name} must be {' or '.join(choices)}, not {getattr(self, name)!r}")
        if problems:
            raise QuantizationError("; ".join(problems))


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
    """Formats of all activations, and what else quantization takes from the calibration text.

    Attributes:
        formats: Format by tensor name, as `Transformer.forward` names them, and `residual`.
        tensors: The same with measured quality, for reports.
        moments: Of the linear layers' inputs, by the input's name; without them weights are rounded
            to nearest.
        weight_bits: Widths that differ from the settings', by layer.
        histograms: Of every tensor with a format.
        tokens: The calibration text (N, T).
    """

    formats: Mapping[str, QFormat]
    tensors: tuple[TensorFormat, ...]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    weight_bits: Mapping[str, WeightBits] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    tokens: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))


def refuse_unsupported(config: ModelConfig, parameters: Mapping[str, np.ndarray] | None = None) -> None:
    """Refuse a model that the integer transformer has no operator for, or no number.

    Args:
        config: The model's.
        parameters: Its weights by name; None where they are not looked at.

    Raises:
        QuantizationError: It has sizes beyond the operators', or weights that are NaN or infinite;
            the message names all that it has.
    """
    reasons = []
    if config.embed_dim > MAXIMUM_CHANNELS:
        reasons.append(f"embed_dim {config.embed_dim:,} (at most {MAXIMUM_CHANNELS:,})")
    if config.max_seq_len > MAXIMUM_CONTEXT:
        reasons.append(f"max_seq_len {config.max_seq_len:,} (at most {MAXIMUM_CONTEXT:,})")
    reasons += [
        f"weight {name} is NaN or infinite"
        for name, values in (parameters or {}).items()
        if not np.isfinite(values).all()
    ]
    if reasons:
        raise QuantizationError(f"the model cannot be quantized: {'; '.join(reasons)}")


def model_block(config: ModelConfig) -> tuple[Step, ...]:
    """Return the steps of a block of a model."""
    return block_steps(rotary=config.position == "rotary", gated=config.activation == "swiglu")


def model_steps(config: ModelConfig) -> tuple[Step, ...]:
    """Return all steps of a model, from the tokens to the logits."""
    return decoder_steps(config.num_layers, model_block(config))


def calibrate(
    model: Transformer, tokens: np.ndarray, settings: QuantizationSettings, overrides: Overrides | None = None
) -> Calibration:
    """Run the float model on tokens and choose each activation's format.

    Args:
        model: The trained model.
        tokens: Calibration windows (N, T), N >= 1, 1 <= T <= max_seq_len.
        settings: Widths and methods.
        overrides: What differs for single layers and tensors.

    Raises:
        QuantizationError: `refuse_unsupported` refuses the model; no tokens, an activation that is
            not finite, an override of something that is not there, or a format that does not hold
            its tensor.
    """
    refuse_unsupported(model.config)
    windows = np.asarray(tokens)
    if windows.ndim != 2 or 0 in windows.shape:
        raise QuantizationError(
            f"calibration needs at least one whole window of tokens (N, T); got an array of shape {windows.shape}. "
            "Use a longer text."
        )
    steps = model_steps(model.config)
    feed_linear = frozenset(linear_inputs(steps).values()) if settings.rounding == "compensated" else frozenset()
    observed = _Observed(model.config, feed_linear)
    with one_blas_thread(BATCH * windows.shape[1] * model.config.embed_dim * model.config.hidden_dim):
        for start in range(0, len(windows), BATCH):
            model.forward(windows[start : start + BATCH], observe=observed.add)
    in_stream, shared = residual_stream(steps), residual_format_tensors(steps)
    own = [name for name in observed.histograms if name not in shared]
    changes = (overrides or Overrides()).resolve(layer_names(model.config), ["residual", *own])
    stream = [histogram for name, histogram in observed.histograms.items() if name in in_stream]
    formats = {"residual": _residual_format(stream, settings, changes)}
    wide = product_operands(steps) | {"logits"}
    for name in own:
        formats[name] = _choose(name, observed.histograms[name], settings, changes, name in wide)
    used = {
        name: (histogram, formats["residual" if name in in_stream else name])
        for name, histogram in observed.histograms.items()
        if name in formats or name in in_stream
    }
    return Calibration(
        formats=formats,
        tensors=tuple(
            TensorFormat(
                name,
                (observed.channels[name],),
                str(target),
                histogram.signal_to_noise(target),
                histogram.saturated(target),
            )
            for name, (histogram, target) in used.items()
        ),
        moments=observed.moments,
        weight_bits=changes.weight_bits,
        histograms={name: histogram for name, (histogram, _) in used.items()},
        tokens=windows,
    )


class _Observed:
    """An observer of `Transformer.forward`: histograms, and moments of what is in `feed_linear`."""

    def __init__(self, config: ModelConfig, feed_linear: frozenset[str]) -> None:
        self.config = config
        self.feed_linear = feed_linear
        self.histograms: dict[str, Histogram] = {}
        self.channels: dict[str, int] = {}
        self.moments: dict[str, Moments] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        if name.endswith("attention.weights"):
            return
        factor = integer_factor(self.config, name)
        if factor != 1:
            values = values * values.dtype.type(factor)
        self.channels[name] = values.shape[-1]
        try:
            self.histograms.setdefault(name, Histogram()).add(values)
        except QuantizationError:
            raise QuantizationError(
                f"activation {name} is NaN or infinite on the calibration text; the model cannot be quantized"
            ) from None
        if name in self.feed_linear:
            self.moments.setdefault(name, Moments()).add(values)


def integer_factor(config: ModelConfig, name: str) -> float:
    """Return the integer model's factor on a float tensor, or on the weights and bias of it."""
    is_query = name.removesuffix(".weight").endswith(("attention.query", "attention.rotated_query"))
    return query_scale(config.head_dim) if is_query else 1.0


def query_scale(head_dim: int) -> float:
    """Return log2(e) / sqrt(d), the query projection's factor for a base-2 softmax."""
    return math.log2(math.e) / math.sqrt(head_dim)


def weight_parameter(config: ModelConfig, name: str) -> str:
    """Return the name of the parameter that holds a linear layer's weights."""
    if name == "logits":
        return "token_embedding" if config.tie_embeddings else "output.weight"
    return f"{name}.weight"


def layer_names(config: ModelConfig) -> list[str]:
    """Return the names of linear layers, `logits` among them, and of embedding tables."""
    shapes = parameter_shapes(config)
    layers = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight") and name != "output.weight"]
    return [*layers, "logits", *(name for name in TABLES if name in shapes)]


def _residual_format(stream: list[Histogram], settings: QuantizationSettings, changes: ResolvedOverrides) -> QFormat:
    """Return the format of the residual stream from its tensors' histograms.

    The stream often grows from block to block, while each norm that reads it sees only ratios: so
    the noise of every tensor counts in relation to its own power, and rare values at the end may be
    clipped for the sake of the beginning.
    """
    widest = max(stream, key=lambda histogram: histogram.peak)
    if "residual" in changes.formats:
        return _checked("residual", widest, changes.formats["residual"])
    covering = covering_format(widest.peak * RESIDUAL_HEADROOM, settings.residual_bits)
    if settings.calibration != "least-squares":
        return covering

    def relative_noise(target: QFormat) -> float:
        return sum(histogram.noise(target) / histogram.square_sum for histogram in stream if histogram.square_sum)

    candidates = [
        QFormat(covering.bits, min(covering.fraction + finer, MAXIMUM_FRACTION)) for finer in range(CANDIDATES)
    ]
    return min(candidates, key=relative_noise)


def _choose(
    name: str, histogram: Histogram, settings: QuantizationSettings, changes: ResolvedOverrides, wide: bool
) -> QFormat:
    """Return the format of one tensor; a wide one has the bits of the residual stream."""
    if name in changes.formats:
        return _checked(name, histogram, changes.formats[name])
    if wide:
        bits = changes.activation_bits.get(name, settings.residual_bits)
        return covering_format(histogram.peak * RESIDUAL_HEADROOM, bits)
    bits = changes.activation_bits.get(name, settings.activation_bits)
    if settings.calibration == "maximum":
        return covering_format(histogram.peak, bits)
    if settings.calibration == "percentile":
        return covering_format(histogram.percentile(PERCENTILE), bits)
    return histogram.least_squares_format(bits)


def _checked(name: str, histogram: Histogram, target: QFormat) -> QFormat:
    """Refuse a format that does not hold its tensor; the residual stream may not saturate."""
    saturated = histogram.saturated(target)
    if saturated > (0 if name == "residual" else LARGEST_SATURATED):
        raise QuantizationError(
            f"{name} does not fit {target}, which ends at {target.maximum:g}: {saturated:.2%} of its values on the "
            f"calibration text would saturate, the largest is {histogram.peak:g}"
        )
    if name not in ("residual", "logits") and target.fraction > MAXIMUM_FRACTION:
        raise QuantizationError(f"{name} may have at most {MAXIMUM_FRACTION} fraction bits, not {target}")
    return target
