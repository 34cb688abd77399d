"""What can go wrong above the circuits: parameters that make no circuit, and tools that are missing
or fail.
"""


class CircuitError(ValueError):
    """Parameters that make no circuit, or a circuit that does not fit its board; the message says
    what to change.
    """


class ToolError(RuntimeError):
    """An external tool is missing or failed; the message says what to install or where its output
    lies.
    """
