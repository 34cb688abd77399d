"""Positron: scripts."""

from positron_start import refuse_stranger

refuse_stranger()  # before a command imports what is not ours
