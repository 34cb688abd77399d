"""The one exception that `fixedpoint` raises for input that cannot be quantized or loaded."""


class QuantizationError(ValueError):
    """A model, format, calibration text or export that cannot be used; the message says what to change."""
