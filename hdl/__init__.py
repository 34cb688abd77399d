"""Positron: hdl."""
