"""A quantized model as constants of C."""

from __future__ import annotations

from .transformer import QuantizedTransformer


def c_header(quantized: QuantizedTransformer) -> str:
    """Return the text of `model.h`."""
    return f"/* vocabulary {quantized.vocab_size} */\n"
