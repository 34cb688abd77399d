"""What cores are made of: arithmetic, multipliers, tables, delays, stream parts, payloads."""
