"""What `positron benchmark` measures."""
