"""Checks of option values: Python's and NumPy's numbers count as numbers, booleans do not.

As in `model/checks.py`; written here again because the integer operators run without `model`.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number: an int or one of NumPy's integers."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number: an integer, a float, or one of NumPy's."""
    return is_whole(value) or isinstance(value, float | np.floating)


def plain(value: Any) -> Any:
    """Return one of NumPy's numbers as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.integer | np.floating) else value
