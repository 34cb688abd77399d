"""Claims about circuits, proven for all inputs, and the seeded bugs that each must refute."""
