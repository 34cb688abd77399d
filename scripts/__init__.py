"""Positron: scripts."""
