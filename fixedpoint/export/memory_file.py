"""Memory files for `$readmemh` (IEEE 1364-2005 §17.2.9)."""

from __future__ import annotations

import numpy as np

from ..packing import pack_rows


def memory_file(tensor: np.ndarray, bits: int) -> str:
    """Return a tensor's `$readmemh` text, a row a line, element 0 in the least significant bits.

    Args:
        tensor: Signed integers (R, K) or (R,).
        bits: Width of an element in two's complement; a line has ceil(K · bits / 4) hexadecimal
            digits.
    """
    rows = tensor.reshape(len(tensor), -1).astype(np.int64)  # (R,) -> (R, 1)
    digits = -(-bits * rows.shape[1] // 4)
    return "".join(f"{word:0{digits}x}\n" for word in pack_rows(rows, bits))
