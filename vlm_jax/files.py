"""Writing files whole, and telling a full disk from other trouble."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file so that a reader, or a crash, finds the old file or the new one and nothing between.

    Raises:
      OSError: the system cannot write it; the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            # A tokenizer's bytes need not be valid text; whatever cannot be encoded is shown as an escape.
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is behind `error`; TensorStore reports it as text only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "RESOURCE_EXHAUSTED: Disk" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
