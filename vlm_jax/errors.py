"""The one exception that means "the person at the keyboard can mend this", and a hint at how."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input that a user can correct: a config field, a file, a record.

    The message is one line that names the file, line or field and says what to do. Commands print it without a
    traceback and exit with code 2 (`vlm_jax.cli.run`); every other exception is a defect and keeps its traceback.
    """


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` where something known is similar, else nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
