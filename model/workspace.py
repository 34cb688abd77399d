"""Arrays that are used again at every training step instead of being allocated anew.

Fresh memory costs more than arithmetic here: the system hands out zeroed pages one fault at a time, and they are cold in the cache.
A layer asks for an array by name; the first request allocates it, later ones with the same shape return the same memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np

# Pointwise passes run over this many values at a time, so that one pass finds in the cache what the last one left there.
BLOCK_VALUES = 1 << 16


class Workspace:
    """Named arrays of one data type.

    Args:
        dtype: Floating-point type of the arrays.
        reuse: Whether a name returns the same memory again. Without, every request allocates, and nothing that was
            handed out is ever overwritten.
    """

    def __init__(self, dtype: np.dtype, reuse: bool = True) -> None:
        self.dtype = dtype
        self.reuse = reuse
        self._arrays: dict[Hashable, np.ndarray] = {}

    def array(self, name: Hashable, *shape: int) -> np.ndarray:
        """Return an array of this name and shape with undefined content."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or not self.reuse:
            array = self._arrays[name] = np.empty(shape, self.dtype)
        return array

    def ones(self, length: int) -> np.ndarray:
        """Return a vector of ones. A product with it sums rows or columns at the speed of BLAS; `sum` along a short axis is slow."""
        array = self._arrays.get(("ones", length))
        if array is None:
            array = self._arrays["ones", length] = np.ones(length, self.dtype)
        return array

    def later_keys(self, size: int) -> np.ndarray:
        """Return the causal mask (size, size) that is added to scores: −inf above the diagonal, where the key comes later."""
        array = self._arrays.get(("later keys", size))
        if array is None:
            array = self._arrays["later keys", size] = np.triu(np.full((size, size), -np.inf, self.dtype), 1)
        return array


def row_blocks(num_rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cut rows of `width` values into blocks that fit the cache."""
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
