"""The recipes' commands: for each a module with `HELP`, `add_flags(parser)` and `run(flags)`, entered in `__main__.py`."""
