"""Circuits that follow a schedule of steps over several cores."""
