"""Claims about circuits and the circuits with bugs that each must refute."""
