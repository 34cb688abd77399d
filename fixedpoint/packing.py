"""Rows of integers as the words of a memory, for memory files and for block RAM."""

from __future__ import annotations

import numpy as np

from .arithmetic import Integers


def pack_rows(rows: Integers, bits: int) -> list[int]:
    """Return the words of a memory, one a row, element 0 in the least significant bits.

    Args:
        rows: Integers (N, K); the low `bits` bits of each are stored, two's complement.
        bits: Width of an element.
    """
    planes = (rows[..., None] >> np.arange(bits)) & 1  # (N, K) -> (N, K, bits)
    flat = planes.reshape(len(rows), -1).astype(np.uint8)  # -> (N, K · bits), lowest bit first
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(flat, axis=1, bitorder="little")]
