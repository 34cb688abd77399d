"""Circuits with stream ports, each equal to its specification in `fixedpoint`."""
