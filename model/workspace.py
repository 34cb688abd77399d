"""Arrays that are reused at every training step instead of being allocated again.

Fresh memory costs more than arithmetic here: the system hands out zeroed pages one fault at a time,
and they are cold in the cache. A layer asks for an array by name; the first request allocates it,
later ones that are not larger return the same memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Self

import numpy as np

# Pointwise passes run over this many values at a time, so that one pass finds in the cache what the
# last one left there.
BLOCK_VALUES = 1 << 16
BLOCK = re.compile(r"blocks\.\d+\.")


class Workspace:
    """Named arrays of one data type.

    Args:
        dtype: Floating-point type of the arrays.
        reuse: Whether a name returns the same memory again. Without, every request allocates, and
            nothing that was handed out is ever overwritten.
    """

    def __init__(self, dtype: np.dtype, reuse: bool = True) -> None:
        self.dtype = dtype
        self.reuse = reuse
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._memory: dict[Hashable, np.ndarray] = {}
        self._one_block = False

    def one_block(self) -> Self:
        """Return this workspace with one block's memory for all; for passes that keep no tensor."""
        workspace = type(self)(self.dtype, self.reuse)
        workspace._arrays, workspace._memory = self._arrays, self._memory
        workspace._one_block = True
        return workspace

    def array(self, name: Hashable, *shape: int) -> np.ndarray:
        """Return an array of this name and shape with undefined content."""
        if self._one_block:
            name = _name_in_first_block(name)
        array = self._arrays.get(name)
        if array is None or array.shape != shape or not self.reuse:
            size = math.prod(shape)
            memory = self._memory.get(name)
            if memory is None or memory.size < size or not self.reuse:
                memory = self._memory[name] = np.empty(size, self.dtype)
            array = self._arrays[name] = memory[:size].reshape(shape)  # (size,) -> shape
        return array

    def ones(self, length: int) -> np.ndarray:
        """Return a vector of ones, to sum with BLAS; `sum` along a short axis is slow."""
        array = self._arrays.get(("ones", length))
        if array is None:
            array = self._arrays["ones", length] = np.ones(length, self.dtype)
        return array

    def later_keys(self, size: int) -> np.ndarray:
        """Return the causal mask (size, size), added to scores: −inf above the diagonal."""
        array = self._arrays.get(("later keys", size))
        if array is None:
            array = self._arrays["later keys", size] = np.triu(np.full((size, size), -np.inf, self.dtype), 1)
        return array


@cache
def _name_in_first_block(name: Hashable) -> Hashable:
    if not isinstance(name, tuple):
        return name
    return tuple(BLOCK.sub("blocks.0.", part) if isinstance(part, str) else part for part in name)


def row_blocks(num_rows: int, width: int, values: int = BLOCK_VALUES) -> Iterator[slice]:
    """Yield slices of rows, in blocks of at most `values` values; by default, what caches hold."""
    step = max(1, values // width)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
