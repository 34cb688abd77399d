"""Memory files for `$readmemh` (IEEE 1364-2005 §17.2.9)."""

from __future__ import annotations

import numpy as np


def memory_file(tensor: np.ndarray, bits: int) -> str:
    """Return a tensor's `$readmemh` text: a row (matrix) or element (vector) a line, element 0 in
    the least significant bits.

    Args:
        tensor: Signed integers (R, K) or (R,).
        bits: Width of an element in two's complement; a line has ceil(K · bits / 4) hexadecimal
            digits.
    """
    rows = tensor.reshape(len(tensor), -1).astype(np.int64)
    # (R, K, bits), the least significant bit first
    planes = (rows[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(planes.reshape(len(rows), -1).astype(np.uint8), axis=1, bitorder="little")
    digits = -(-bits * rows.shape[1] // 4)
    # A hexadecimal number begins with its most significant byte; half a byte may be padding.
    return "".join(f"{row.tobytes().hex()[-digits:]}\n" for row in packed[:, ::-1])
