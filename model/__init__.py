"""Positron: model."""
