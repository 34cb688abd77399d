"""Quantization loss: signal-to-noise ratio of each tensor, loss when one part is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from model import Transformer

from ..operators.linear import Linear
from ..operators.row_norm import RowNorm
from ..qformat import IntegerArray, Overflow, QFormat, Rounding
from ..transformer import QuantizedTransformer
from .calibration import integer_factor
from .histogram import decibels
from .quantize import named_linears, weight_parameter

BATCH = 32
# beside each row of weights: a byte for its fraction, 32 bits for its bias
SCALE_AND_BIAS_BYTES = 5


@dataclass(frozen=True)
class TensorComparison:
    """A tensor of the integer model beside the float model's.

    Attributes:
        name: The tensor.
        format: Its Q-format.
        signal_to_noise: 10·log10(Σ float² / Σ (float − fixed)²) in dB, all errors made up to here
            included.
        saturated: Fraction of the integers at an end of the range.
    """

    name: str
    format: str
    signal_to_noise: float
    saturated: float


@dataclass(frozen=True)
class PartLoss:
    """What one part costs when everything else stays in floats.

    Attributes:
        name: The layer, table or tensor.
        kind: "weights" or "activations".
        difference: Loss above the float model's, in nats; may be negative.
    """

    name: str
    kind: str
    difference: float


def tensor_formats(quantized: QuantizedTransformer) -> dict[str, QFormat]:
    """Return the format of every tensor between the layers, in the order of the computation."""
    return {operation.name: operation.operator.output for operation in quantized.operations}


def compare_tensors(
    model: Transformer, quantized: QuantizedTransformer, tokens: np.ndarray
) -> tuple[TensorComparison, ...]:
    """Run both models on tokens (N, T) and compare every tensor on the way."""
    formats = tensor_formats(quantized)
    sums = {name: np.zeros(4) for name in formats}  # signal², noise², values at an end, values
    for start in range(0, len(tokens), BATCH):
        exact: dict[str, np.ndarray] = {}
        model.forward(tokens[start : start + BATCH], observe=exact.__setitem__)

        def compare(name: str, integers: IntegerArray, exact: Mapping[str, np.ndarray] = exact) -> None:
            target = formats[name]
            reference = exact[name].astype(np.float64) * integer_factor(model.config, name)
            ends = (integers == target.minimum_integer) | (integers == target.maximum_integer)
            noise = np.square(reference - target.dequantize(integers)).sum()
            sums[name] += np.square(reference).sum(), noise, ends.sum(), integers.size

        quantized.forward(tokens[start : start + BATCH], observe=compare)
    return tuple(
        TensorComparison(name, str(formats[name]), decibels(float(signal), float(noise)), float(ends / size))
        for name, (signal, noise, ends, size) in sums.items()
        if size
    )


def worst(comparisons: tuple[TensorComparison, ...]) -> TensorComparison:
    """Return the tensor of the lowest signal-to-noise ratio."""
    return min(comparisons, key=lambda row: row.signal_to_noise)


def part_losses(
    model: Transformer,
    quantized: QuantizedTransformer,
    inputs: np.ndarray,
    targets: np.ndarray,
    progress: Callable[[list[str]], Iterator[str]] = iter,
) -> tuple[PartLoss, ...]:
    """Measure the loss of the float model with one part at a time rounded as in the integer model.

    Args:
        model: The float model; its parameters are as before when this returns or fails.
        quantized: The integer model.
        inputs: Windows (N, T).
        targets: Their targets (N, T).
        progress: Wraps the list of names, for instance in a progress bar.

    Returns:
        All parts, the costliest first. A layer's part is its weights, and its bias where the float
            model has one.
    """
    layers = _rounded_parameters(model, quantized)
    tensors = {name: target for name, target in tensor_formats(quantized).items() if name != "logits"}
    float_loss = _loss(model, inputs, targets)
    parts = []
    for part in progress([*(f"weights {name}" for name in layers), *(f"activations {name}" for name in tensors)]):
        kind, _, name = part.partition(" ")
        if kind == "activations":
            rounding = _rounding(name, tensors[name], integer_factor(model.config, name))
            parts.append(PartLoss(name, kind, _loss(model, inputs, targets, rounding) - float_loss))
            continue
        before = {parameter: model.parameters[parameter].copy() for parameter in layers[name]}
        try:
            for parameter, values in layers[name].items():
                model.parameters[parameter][...] = values
            parts.append(PartLoss(name, kind, _loss(model, inputs, targets) - float_loss))
        finally:
            for parameter, values in before.items():
                model.parameters[parameter][...] = values
    return tuple(sorted(parts, key=lambda row: -row.difference))


def storage_bytes(quantized: QuantizedTransformer) -> int:
    """Return the bytes of weights and tables at their widths, fractions, biases and norms."""
    bits, rows = 0, 0
    for operator in (operation.operator for operation in quantized.operations):
        if isinstance(operator, Linear):
            bits, rows = bits + operator.weight.size * operator.weight_bits, rows + operator.rows
        elif isinstance(operator, RowNorm):
            bits += operator.channels * (operator.scale_format.bits + 32 * hasattr(operator, "shift"))
    for table in quantized.embedding.tables.values():
        bits += table.weight.size * table.weight_bits + 8 * len(table.weight)
    return -(-bits // 8) + rows * SCALE_AND_BIAS_BYTES


def _rounded_parameters(model: Transformer, quantized: QuantizedTransformer) -> dict[str, dict[str, np.ndarray]]:
    """Return, for every layer and table, the parameters that its quantization changes, rounded."""
    rounded: dict[str, dict[str, np.ndarray]] = {}
    for name, layer in named_linears(quantized).items():
        scale = integer_factor(model.config, name)
        parameters = {weight_parameter(model.config, name): layer.dequantized_weight() / scale}
        if f"{name}.bias" in model.parameters:
            parameters[f"{name}.bias"] = _real_bias(layer) / scale
        rounded[name] = parameters
    for kind, table in quantized.embedding.tables.items():
        name = f"{kind}_embedding"
        if name in model.parameters:
            # (N, C), (N, 1) -> (N, C)
            rounded[name] = {name: np.ldexp(table.weight.astype(np.float64), -table.weight_fraction[:, None])}
    return rounded


def _real_bias(layer: Linear) -> np.ndarray:
    return np.ldexp(layer.bias.astype(np.float64), -(layer.input.fraction + layer.weight_fraction))


def _rounding(name: str, target: QFormat, factor: float) -> Callable[[str, np.ndarray], None]:
    """Return a transform that rounds one tensor to its format in place."""

    def transform(seen: str, values: np.ndarray) -> None:
        if seen == name:
            scaled = values.astype(np.float64) * factor
            values[...] = target.dequantize(target.quantize(scaled, Rounding.HALF_UP, Overflow.SATURATE)) / factor

    return transform


def _loss(
    model: Transformer,
    inputs: np.ndarray,
    targets: np.ndarray,
    transform: Callable[[str, np.ndarray], None] | None = None,
) -> float:
    total = 0.0
    for start in range(0, len(inputs), BATCH):
        part = slice(start, start + BATCH)
        total += model.loss(inputs[part], targets[part], transform) * len(inputs[part])
    return total / len(inputs)
