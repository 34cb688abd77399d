"""Positron: fixedpoint."""
