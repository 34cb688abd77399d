"""The integer operators that a decoder consists of, each the specification of a circuit."""
