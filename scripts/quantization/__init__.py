"""`positron quantize`: options, calibration text, analysis, sweep, pictures."""
