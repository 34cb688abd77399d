"""From a trained float model to integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from model import Transformer
from model.activations import activation_function
from model.rotary import rotation_table

from ..errors import QuantizationError
from ..operators.activation import TableActivation
from ..operators.attention import CausalAttention
from ..operators.embedding import Embedding, EmbeddingTable
from ..operators.layer_norm import LayerNorm
from ..operators.linear import Linear, largest_fractions
from ..operators.operator import Operator, ResidualAdd
from ..operators.product import Product
from ..operators.rms_norm import RMSNorm
from ..operators.rotation import Rotation, RotationTable
from ..qformat import IntegerArray, QFormat
from ..row_scales import least_squares_fractions, storage_bits
from ..topology import LOGITS, Kind, Step, final_norm_step, in_decoder
from ..transformer import Block, Norm, QuantizedTransformer
from .calibration import (
    Calibration,
    QuantizationSettings,
    TensorFormat,
    integer_factor,
    model_block,
    refuse_unsupported,
    weight_parameter,
)
from .error_compensation import compensate
from .histogram import signal_to_noise
from .sequential import round_in_order


def quantize_transformer(
    model: Transformer,
    calibration: Calibration,
    settings: QuantizationSettings,
    fractions: Mapping[str, IntegerArray] | None = None,
) -> QuantizedTransformer:
    """Quantize a trained model with the activation formats of a calibration.

    Args:
        model: The model.
        calibration: Formats of its activations.
        settings: Widths.
        fractions: Fraction of each row (R,) of a linear layer, by the name of its float weights,
            which are then rounded to nearest. The others get the scales of least output error where
            the calibration has moments, of least squared error where it has none.

    Raises:
        QuantizationError: `refuse_unsupported` refuses the model, or an accumulator would need more
            than 32 bits.
    """
    config = model.config
    refuse_unsupported(config, model.parameters)
    formats = calibration.formats
    residual = formats["residual"]
    parameters = model.parameters
    in_order = round_in_order(model, calibration, settings) if settings.rounding == "sequential" else {}

    def linear(step: Step) -> Linear:
        name, (source,) = step.name, step.inputs
        parameter, scale = weight_parameter(config, name), integer_factor(config, name)
        weight, bias = parameters[parameter].astype(np.float64) * scale, parameters.get(f"{name}.bias")
        offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64) * scale
        bits = calibration.weight_bits.get(name, settings.weight_bits)
        limit = largest_fractions(offset, weight.shape[1], storage_bits(bits), formats[source])
        one_scale, moments = settings.scales == "tensor", calibration.moments.get(source)
        if fractions is not None and parameter in fractions:
            fraction = fractions[parameter]
        elif name in in_order:
            weight, offset, fraction = in_order[name]
        elif moments is not None:
            weight, offset, fraction = compensate(weight, offset, bits, moments, limit, one_scale)
        else:
            fraction = least_squares_fractions(weight, bits, one_scale)
            fraction = np.full(len(weight), min(fraction.min(), limit.min()), np.int64) if one_scale else fraction
        return Linear.from_float(weight, offset, bits, formats[source], formats.get(name, residual), fraction)

    def norm(step: Step) -> Norm:
        name = step.name
        scale, joints = parameters[f"{name}.scale"], (config.norm_epsilon, residual, formats[name])
        if config.norm == "rms":
            return RMSNorm.from_float(scale, *joints, settings.activation_bits)
        return LayerNorm.from_float(scale, parameters[f"{name}.shift"], *joints, settings.activation_bits)

    def attention(step: Step) -> CausalAttention:
        query, key, value = (formats[name] for name in step.inputs)
        sizes = config.embed_dim, config.num_heads, config.max_seq_len
        return CausalAttention(query, key, value, formats[step.name], *sizes, num_kv_heads=config.kv_heads)

    def activation(step: Step) -> TableActivation:
        function = activation_function(config.activation)
        return TableActivation.from_function(function, formats[step.inputs[0]], formats[step.name])

    def product(step: Step) -> Product:
        first, second = (formats[name] for name in step.inputs)
        return Product(first, second, formats[step.name])

    rotation = None
    if config.position == "rotary":
        sizes = config.max_seq_len, config.head_dim, config.rotary_base
        rotation = RotationTable.from_factors(rotation_table(*sizes, np.dtype(np.float64)))

    def rotated(step: Step) -> Rotation:
        assert rotation is not None
        return Rotation(formats[step.inputs[0]], formats[step.name], rotation)

    makers: dict[Kind, Callable[[Step], Operator]] = {
        Kind.NORM: norm,
        Kind.LINEAR: linear,
        Kind.ATTENTION: attention,
        Kind.ACTIVATION: activation,
        Kind.ROTATION: rotated,
        Kind.PRODUCT: product,
        Kind.RESIDUAL_ADD: lambda step: ResidualAdd(residual),
    }
    inner_steps = model_block(config)

    def block(index: int) -> Block:
        # which tensor enters decides nothing here
        steps = in_decoder(inner_steps, index, "embedding")
        return Block.from_operators(
            {inner.name: makers[step.kind](step) for inner, step in zip(inner_steps, steps, strict=True)}
        )

    def table(name: str, values: np.ndarray) -> EmbeddingTable:
        return EmbeddingTable.from_float(
            values, storage_bits(calibration.weight_bits.get(name, settings.embedding_bits))
        )

    blocks = []
    for index in range(config.num_layers):
        try:
            blocks.append(block(index))
        except QuantizationError as error:
            raise QuantizationError(f"block {index}: {error}") from None
    return QuantizedTransformer(
        embedding=Embedding(
            token=table("token_embedding", parameters["token_embedding"]),
            position=None if rotation is not None else table("position_embedding", model.position_table()),
            output=residual,
        ),
        blocks=tuple(blocks),
        final_norm=norm(final_norm_step("embedding")),
        logits=linear(LOGITS),
        residual=residual,
    )


def weight_table(model: Transformer, quantized: QuantizedTransformer) -> tuple[TensorFormat, ...]:
    """Return what quantization did to each linear layer's weights, for reports."""
    rows = []
    for name, layer in named_linears(quantized).items():
        exact = model.parameters[weight_parameter(model.config, name)]
        reference = exact.astype(np.float64) * integer_factor(model.config, name)
        fractions = sorted(set(layer.weight_fraction.tolist()))
        ends = dict.fromkeys(str(QFormat(layer.weight_bits, fraction)) for fraction in (fractions[0], fractions[-1]))
        code = QFormat(layer.weight_bits, 0)
        scaled = np.ldexp(reference, layer.weight_fraction[:, None])  # (R, K), (R, 1) -> (R, K)
        clipped = (scaled < code.minimum_integer) | (scaled > code.maximum_integer)
        rows.append(
            TensorFormat(
                f"{name}.weight",
                layer.weight.shape,
                " … ".join(ends),
                signal_to_noise(reference, layer.dequantized_weight()),
                float(clipped.mean()),
            )
        )
    return tuple(rows)


def named_linears(quantized: QuantizedTransformer) -> dict[str, Linear]:
    """Return every linear layer by the float model's name for it."""
    return {
        operation.name: operation.operator
        for operation in quantized.operations
        if isinstance(operation.operator, Linear)
    }
