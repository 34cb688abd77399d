"""Small integer models from random numbers, for the tests of `fixedpoint`."""

from dataclasses import replace

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
    RMSNorm,
    TableActivation,
)

RESIDUAL = QFormat(16, 10)
NORMED = QFormat(8, 5)


def random_linear(generator, rows, columns, input_format, output, weight_bits=8):
    """A layer whose rows have different scales, and whose outputs use the range and sometimes leave it."""
    layer = Linear.from_float(
        generator.normal(size=(rows, columns)) * 2.0 ** generator.integers(-2, 2, size=(rows, 1)),
        generator.normal(size=rows),
        weight_bits,
        input_format,
        output,
    )
    assert len(set(layer.weight_fraction.tolist())) > 1 or rows == 1
    return layer


def random_norm(generator, channels, input_format=RESIDUAL, output=NORMED):
    return LayerNorm.from_float(
        generator.uniform(-2, 2, size=channels), generator.normal(size=channels), 1e-5, input_format, output, 8
    )


def random_attention(generator, channels=12, num_heads=3, context_length=7, weight_bits=8, output=RESIDUAL):
    def projection(target, source=NORMED):
        return random_linear(generator, channels, channels, source, target, weight_bits)

    return Attention(
        query=projection(QFormat(8, 5)),
        key=projection(QFormat(8, 4)),
        value=projection(QFormat(8, 5)),
        output=projection(output, QFormat(8, 6)),
        num_heads=num_heads,
        context_length=context_length,
    )


def random_block(generator, channels=12, num_heads=3, context_length=7, hidden=20):
    up, activated = QFormat(8, 4), QFormat(8, 5)
    return Block(
        attention_norm=random_norm(generator, channels),
        attention=random_attention(generator, channels, num_heads, context_length),
        feed_forward_norm=random_norm(generator, channels),
        up=random_linear(generator, hidden, channels, NORMED, up),
        activation=TableActivation.from_function(lambda x: np.maximum(x, 0) ** 2 / 4, up, activated),
        down=random_linear(generator, channels, hidden, activated, RESIDUAL),
    )


def random_transformer(seed=0, num_layers=2, channels=12, num_heads=3, context_length=7, vocab_size=11):
    generator = np.random.default_rng(seed)
    return QuantizedTransformer(
        embedding=Embedding(
            EmbeddingTable.from_float(generator.normal(size=(vocab_size, channels)), 8),
            EmbeddingTable.from_float(0.3 * generator.normal(size=(context_length, channels)), 8),
            RESIDUAL,
        ),
        blocks=tuple(random_block(generator, channels, num_heads, context_length) for _ in range(num_layers)),
        final_norm=random_norm(generator, channels),
        logits=random_linear(generator, vocab_size, channels, NORMED, QFormat(16, 9)),
        residual=RESIDUAL,
    )


def adversarial_rows(channels, input_format):
    """Rows for a norm, that reach the largest sums, differences and variances, and the smallest."""
    low, high = input_format.minimum_integer, input_format.maximum_integer
    rows = [np.full(channels, value) for value in (low, high, 0, -1)]
    for ones in {1, channels // 2, channels - 1} - {0, channels}:
        for a, b in ((low, high), (high, low), (0, 1), (-1, 0), (low, low + 1), (high, high - 1)):
            row = np.full(channels, a)
            row[:ones] = b
            rows.append(row)
    generator = np.random.default_rng(channels)
    rows.extend(generator.integers(low, high, size=(8, channels), endpoint=True))
    rows.extend(np.clip(np.rint(generator.normal(size=(8, channels)) * 300), low, high).astype(np.int64))
    return np.array(rows)


def with_rms_norms(model):
    """The same model with RMSNorms."""

    def without_mean(norm):
        return RMSNorm(norm.input, norm.scale, norm.scale_format, norm.output, norm.epsilon)

    blocks = tuple(
        replace(
            block,
            attention_norm=without_mean(block.attention_norm),
            feed_forward_norm=without_mean(block.feed_forward_norm),
        )
        for block in model.blocks
    )
    return replace(model, blocks=blocks, final_norm=without_mean(model.final_norm))
