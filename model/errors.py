"""The exceptions of this package for what a user can do wrong."""

from __future__ import annotations


class InputError(ValueError):
    """An unusable file, text or argument; the message says what was wanted and what to do."""


class DivergenceError(InputError):
    """Training met a NaN or an infinity; the message names the step, the tensor, and a remedy."""
