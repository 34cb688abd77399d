"""Small random integer models of every kind that an export, a C program or an ONNX graph must
represent.
"""

from dataclasses import replace

import numpy as np
from fixedpoint_builders import random_linear, random_norm

from fixedpoint import (
    Attention,
    Block,
    Embedding,
    EmbeddingTable,
    Product,
    QFormat,
    QuantizedTransformer,
    Reciprocal,
    ReciprocalSquareRoot,
    RMSNorm,
    Rotation,
    RotationTable,
    TableActivation,
)


def make_model(
    seed,
    *,
    weight_bits=8,
    activation_bits=8,
    residual_bits=16,
    num_layers=2,
    channels=12,
    num_heads=3,
    context_length=7,
    hidden=20,
    vocab_size=11,
    reciprocal=None,
    root=None,
    num_kv_heads=None,
    rotary=False,
    gated=False,
):
    """Return a model whose activations use their ranges, and now and then leave them."""
    generator = np.random.default_rng(seed)
    residual = QFormat(residual_bits, residual_bits - 6)
    narrow = min(activation_bits, 8)  # what an activation's table can read
    kv_channels = (num_kv_heads or num_heads) * (channels // num_heads)
    query_bits, key_bits = (16, 14) if rotary else (activation_bits, activation_bits)
    angles = generator.uniform(-4, 4, size=(context_length + 1, channels // num_heads // 2))
    table = RotationTable.from_factors(np.exp(1j * angles)) if rotary else None

    def rotation(source, fraction):
        return Rotation(source, activations(fraction), table)

    def activations(fraction, bits=activation_bits):
        return QFormat(bits, fraction + bits - 8)

    def linear(rows, columns, source, target):
        return random_linear(generator, rows, columns, source, target, weight_bits)

    def norm():
        layer = random_norm(generator, channels, residual, activations(5))
        return replace(layer, reciprocal_square_root=root or layer.reciprocal_square_root)

    def block():
        up, activated = activations(4, narrow), activations(5)
        query, key = activations(5, query_bits), activations(4, key_bits)
        opened, factor = QFormat(15, 11), QFormat(16, 10)
        return Block(
            attention_norm=norm(),
            attention=Attention(
                query=linear(channels, channels, activations(5), query),
                key=linear(kv_channels, channels, activations(5), key),
                value=linear(kv_channels, channels, activations(5), activations(5)),
                output=linear(channels, channels, activations(6), residual),
                num_heads=num_heads,
                context_length=context_length,
                reciprocal=reciprocal or Reciprocal(),
                rotations=(rotation(query, 5), rotation(key, 4)) if rotary else None,
            ),
            feed_forward_norm=norm(),
            up=linear(hidden, channels, activations(5), factor if gated else up),
            activation=TableActivation.from_function(
                lambda x: np.maximum(x, -0.3) ** 2 / 4, up, opened if gated else activated
            ),
            down=linear(channels, hidden, activated, residual),
            gate=linear(hidden, channels, activations(5), up) if gated else None,
            product=Product(opened, factor, activated) if gated else None,
        )

    return QuantizedTransformer(
        embedding=Embedding(
            EmbeddingTable.from_float(4 * generator.normal(size=(vocab_size, channels)), 8),
            None if rotary else EmbeddingTable.from_float(generator.normal(size=(context_length, channels)), 6),
            residual,
        ),
        blocks=tuple(block() for _ in range(num_layers)),
        final_norm=norm(),
        logits=linear(vocab_size, channels, activations(5), QFormat(16, 8)),
        residual=residual,
    )


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


KINDS = {
    "layer norm": make_model,
    "rms norm": lambda seed: with_rms_norms(make_model(seed)),
    "four bits": lambda seed: make_model(seed, weight_bits=4),
    "ternary, rms norm": lambda seed: with_rms_norms(make_model(seed, weight_bits="ternary", channels=24, num_heads=2)),
    "six-bit activations": lambda seed: make_model(seed, weight_bits=3, activation_bits=6),
    "twelve-bit residual": lambda seed: make_model(seed, residual_bits=12, activation_bits=6),
    "twelve-bit activations": lambda seed: make_model(seed, activation_bits=12),
    "other tables": lambda seed: make_model(seed, reciprocal=Reciprocal(7, 12), root=ReciprocalSquareRoot(8, 11)),
    "large heads": lambda seed: make_model(
        seed, channels=64, num_heads=1, hidden=96, context_length=16, vocab_size=40, num_layers=1
    ),
    "rotary": lambda seed: make_model(seed, rotary=True),
    "gated": lambda seed: make_model(seed, gated=True, weight_bits=4),
    "grouped queries": lambda seed: make_model(seed, channels=24, num_heads=6, num_kv_heads=2),
    "rotary, gated, grouped queries, rms norm": lambda seed: with_rms_norms(
        make_model(seed, rotary=True, gated=True, num_heads=6, num_kv_heads=3, weight_bits=4, activation_bits=10)
    ),
    "one of everything": lambda seed: make_model(
        seed, channels=1, num_heads=1, hidden=1, context_length=1, vocab_size=2, num_layers=1
    ),
}
