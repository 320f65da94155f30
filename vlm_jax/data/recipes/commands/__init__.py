"""The recipes' commands, each a module with `HELP`, `add_flags(parser)` and `run(flags)`, entered in `__main__.py`."""
