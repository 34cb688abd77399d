"""An integer model as the report's page holds it: its manifest and its integers in base64."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from fixedpoint import QuantizedTransformer
from fixedpoint.arithmetic import Integers
from fixedpoint.export.manifest import describe
from fixedpoint.operators.attention import CausalAttention
from fixedpoint.operators.gumbel import noise_table
from fixedpoint.operators.layer_norm import LayerNorm
from fixedpoint.operators.rms_norm import RMSNorm
from model.tokenizers.tokenizer import Tokenizer

# Of base64; with the rest of the page some 3 MB.
LARGEST_BYTES = 2_300_000
TABLE_BITS = 20  # the widest entry, of the noise, has 18, without a sign


def page_model(quantized: QuantizedTransformer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the page's `IntegerModel` and `makeTokenizer` read, ready for JSON.

    Tables of functions are there as integers: a browser's logarithm may differ in the last bit.
    """
    manifest, tensors = describe(quantized)
    stored = {name: packed(tensor, manifest["tensors"][name]["bits"]) for name, tensor in tensors.items()}
    tables = {"noise": noise_table()}
    for operation in quantized.operations:
        operator = operation.operator
        if isinstance(operator, CausalAttention):
            power, inverse = operator.softmax.exponential, operator.reciprocal
            tables[f"exponential {power.table_bits} {power.output_bits}"] = power.table
            tables[f"reciprocal {inverse.index_bits} {inverse.mantissa_bits}"] = inverse.table
        elif isinstance(operator, LayerNorm | RMSNorm):
            root = operator.reciprocal_square_root
            tables[f"reciprocal_square_root {root.index_bits} {root.mantissa_bits}"] = root.table
    left_out = ("schema", "version", "arithmetic", "order", "tensors")
    return {
        "manifest": {name: value for name, value in manifest.items() if name not in left_out},
        "tensors": stored,
        "tables": {name: packed(table, TABLE_BITS) for name, table in tables.items()},
        "tokenizer": {"kind": tokenizer.kind, **tokenizer.to_dict()},
    }


def stored_bytes(quantized: QuantizedTransformer) -> int:
    """Return how many bytes the model's tensors take in the page."""
    manifest, _ = describe(quantized)
    return sum(4 * math.ceil(math.prod(one["shape"]) * one["bits"] / 24) for one in manifest["tensors"].values())


def packed(values: Integers, bits: int) -> dict[str, Any]:
    """Return integers as base64 of their low `bits` bits, without gaps, the lowest bit first."""
    # (N,) -> (N, bits)
    planes = (values.ravel()[:, None] >> np.arange(bits, dtype=values.dtype)) & 1
    data = np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes()
    return {"shape": list(values.shape), "bits": bits, "data": base64.b64encode(data).decode()}
