"""The one exception that means "the person at the keyboard can mend this"."""


class UserError(Exception):
    """A mistake in input that a user can correct: a config field, a file, a record.

    The message is one line that names the file, line or field and says what to do. Commands print it without a
    traceback and exit with code 2 (`vlm_jax.cli.run`); every other exception is a defect and keeps its traceback.
    """
