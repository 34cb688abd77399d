"""Amaranth cores that equal `fixedpoint` bit for bit."""

from .errors import CircuitError, ToolError

__all__ = ["CircuitError", "ToolError"]
