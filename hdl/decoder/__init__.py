"""Circuits that follow a program of steps: a whole decoder, or attention alone."""
