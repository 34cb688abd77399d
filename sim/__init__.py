"""Positron: sim."""
