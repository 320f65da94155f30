"""How data sets are stored, and one way to open them all."""
