"""The list of all cores, with example parameters and test vectors for each."""
