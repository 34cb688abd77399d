"""Threads of NumPy's BLAS: one for small products.

A product on two threads ends when both have. While another program uses the processor's cores, the
second one may sleep for milliseconds, as long as thousands of small products take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

try:
    from threadpoolctl import ThreadpoolController
except ModuleNotFoundError:  # nothing else sets the threads while NumPy runs
    ThreadpoolController = None

# Variables that say how many threads there are, in the environment that NumPy starts in.
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# Multiplications of a product that takes about 20 milliseconds on one thread.
LARGE_PRODUCT = 1 << 30


@contextmanager
def one_blas_thread(largest_product: int = 0) -> Iterator[None]:
    """Compute with one thread of BLAS, in the whole process, unless a product is large or the
    environment says how many threads there are.

    Used as `with one_blas_thread(n):` or as the decorator `@one_blas_thread()`.

    Args:
        largest_product: Multiplications of the largest matrix product inside; from `LARGE_PRODUCT`
            on nothing changes.
    """
    chosen = any(name in os.environ for name in BLAS_THREADS)
    if chosen or ThreadpoolController is None or largest_product >= LARGE_PRODUCT:
        yield
    else:
        with _controller().limit(limits=1, user_api="blas"):
            yield


@cache  # finding the libraries takes milliseconds
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
