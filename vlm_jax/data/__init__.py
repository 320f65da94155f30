"""From files to batches: sources, conversations, tiles, tokens, packing. NumPy and Grain only, never JAX."""
