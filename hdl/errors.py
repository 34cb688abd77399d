"""Errors above the circuits: parameters that make no circuit, tools that are missing or fail."""


class CircuitError(ValueError):
    """Parameters of no circuit, or one that does not fit; the message says what to change."""


class ToolError(RuntimeError):
    """A program is missing or failed; the message says what to install or where its log is."""
