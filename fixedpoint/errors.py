"""What `fixedpoint` raises for input that cannot be quantized or loaded, and where the C compiler
fails.
"""


class QuantizationError(ValueError):
    """A model, format, calibration text or export that cannot be used; the message says what to
    change.
    """


class CompilerError(RuntimeError):
    """There is no C compiler, or what it made does not work; the message says what to install, or
    what the compiler said.
    """
