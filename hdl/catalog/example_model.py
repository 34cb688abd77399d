"""Models from random numbers, the same ones each time: what a core is built from when no trained
run is given.

Resources and cycles of a core depend on its formats and sizes, hardly on its weights, so a table of
all cores needs no training.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from fixedpoint import (
    Attention,
    Block,
    Embedding,
    EmbeddingTable,
    LayerNorm,
    Linear,
    QFormat,
    QuantizedTransformer,
    TableActivation,
)

RESIDUAL = QFormat(16, 10)
NORMED = QFormat(8, 5)
SEED = 1


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer.

    Attributes:
        channels: Width of the residual stream, a multiple of `heads`.
        heads: Attention heads.
        context_length: The longest sequence.
        hidden: Width inside the feed-forward network.
        vocabulary: Tokens.
        weight_bits: Width of the weights.
    """

    channels: int
    heads: int
    context_length: int
    hidden: int
    vocabulary: int
    weight_bits: int


# Small enough to simulate its netlists in seconds; the weights still need a block RAM, the products
# hard multipliers.
SMALL = ModelShape(channels=8, heads=2, context_length=8, hidden=16, vocabulary=12, weight_bits=8)
# One layer of the model that is meant for an ECP5-85F.
TYPICAL = ModelShape(channels=128, heads=4, context_length=64, hidden=512, vocabulary=65, weight_bits=4)

# A whole accelerator that places and routes in minutes.
MEDIUM = ModelShape(channels=64, heads=4, context_length=64, hidden=256, vocabulary=65, weight_bits=8)


@cache
def example_model(shape: ModelShape) -> QuantizedTransformer:
    """Return a model of one block with normally distributed weights.

    Rows of a matrix differ in scale by octaves, so that their shifts differ too, as those of
    trained ones do.
    """
    generator = np.random.default_rng(SEED)

    def linear(rows: int, columns: int, source: QFormat, output: QFormat) -> Linear:
        scale = np.exp2(generator.integers(-1, 2, (rows, 1))) / np.sqrt(columns)
        weight = generator.normal(size=(rows, columns)) * scale
        return Linear.from_float(weight, generator.normal(size=rows) * 0.3, shape.weight_bits, source, output)

    def norm() -> LayerNorm:
        scale, shift = generator.uniform(0.5, 1.5, shape.channels), generator.normal(size=shape.channels) * 0.2
        return LayerNorm.from_float(scale, shift, 1e-5, RESIDUAL, NORMED, 8)

    def table(rows: int) -> EmbeddingTable:
        return EmbeddingTable.from_float(generator.normal(size=(rows, shape.channels)), 8)

    up, activated, square = QFormat(8, 4), QFormat(8, 5), shape.channels
    block = Block(
        attention_norm=norm(),
        attention=Attention(
            query=linear(square, square, NORMED, QFormat(8, 4)),
            key=linear(square, square, NORMED, QFormat(8, 4)),
            value=linear(square, square, NORMED, QFormat(8, 5)),
            output=linear(square, square, QFormat(8, 6), RESIDUAL),
            num_heads=shape.heads,
            context_length=shape.context_length,
        ),
        feed_forward_norm=norm(),
        up=linear(shape.hidden, shape.channels, NORMED, up),
        activation=TableActivation.from_function(lambda x: np.maximum(x, 0) ** 2, up, activated),
        down=linear(shape.channels, shape.hidden, activated, RESIDUAL),
    )
    return QuantizedTransformer(
        embedding=Embedding(table(shape.vocabulary), table(shape.context_length), RESIDUAL),
        blocks=(block,),
        final_norm=norm(),
        logits=linear(shape.vocabulary, shape.channels, NORMED, QFormat(16, 9)),
        residual=RESIDUAL,
    )
