"""The one exception of this package for what a user can do wrong."""

from __future__ import annotations


class InputError(ValueError):
    """A file, text, configuration or argument cannot be used; the message says what was wanted,
    what came, what to do.
    """


class DivergenceError(InputError):
    """Training produced a NaN or an infinity; the message names the step, the tensor, and what to
    change.
    """
