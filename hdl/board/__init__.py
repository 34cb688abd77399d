"""Boards, what fits on them, and the serial link to a host."""
