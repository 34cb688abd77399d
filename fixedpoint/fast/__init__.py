"""The same integers at BLAS speed, equal to the specification bit for bit."""
