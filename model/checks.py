"""Checks of option values: Python's and NumPy's numbers count as numbers, booleans do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np

from .errors import InputError


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number: an int or one of NumPy's integers."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number: an integer, a float, or one of NumPy's."""
    return is_whole(value) or isinstance(value, float | np.floating)


def plain(value: Any) -> Any:
    """Return a NumPy number as Python's, which JSON can hold; anything else unchanged."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


def refuse(*problems: str | None) -> None:
    """Raise one InputError that names every problem; None is no problem."""
    found = [problem for problem in problems if problem is not None]
    if found:
        raise InputError("; ".join(found))


def checked_tokens(tokens: Iterable[object], vocab_size: int, what: str) -> list[int]:
    """Return token numbers as a list.

    Args:
        tokens: Any number of them.
        vocab_size: V.
        what: What to call a token in the message.

    Raises:
        InputError: One is no whole number from 0 to V − 1.
    """
    numbers = []
    for token in tokens:
        if not is_whole(token):
            raise InputError(f"{what} {plain(token)!r} is not a whole number")
        if not 0 <= token < vocab_size:
            raise InputError(f"{what} {token} is outside the vocabulary of {vocab_size} tokens")
        numbers.append(int(token))
    return numbers


def check_settings(program: str, config: object, wanted: Mapping[str, object]) -> None:
    """Refuse a model that another program cannot run, with all that differs in one message.

    Raises:
        InputError: An attribute of the configuration is not the wanted one.
    """
    given = {name: getattr(config, name) for name in wanted}
    refuse(
        *(
            f"{program} has {name} {value!r}, not {given[name]!r}"
            for name, value in wanted.items()
            if given[name] != value
        )
    )
