"""From a float model to an integer one: formats, scales, rounding, fine-tuning, analysis."""
