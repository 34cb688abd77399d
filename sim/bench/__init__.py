"""What drives and checks a circuit in any simulator: cases, vectors, stalls, streams."""
