"""The networks: pure functions of parameters. Knows nothing of data, training or files."""
