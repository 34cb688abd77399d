"""What `fixedpoint` raises for unusable input, and where the C compiler fails."""


class QuantizationError(ValueError):
    """A model, format, calibration text or export is unusable; the message says what to change."""


class CompilerError(RuntimeError):
    """There is no C compiler, or it or its program fails; the message says what to do or why."""
