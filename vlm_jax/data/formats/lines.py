"""Random access to the lines of a text file of any size."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlm_jax.errors import UserError

_CHUNK = 1 << 24  # bytes searched at a time


class Lines:
    """The lines of a file, as bytes without what ends them. Where each begins is found once, by one quick pass.

    The file is not held in memory, and its lines only begin where they did when it was opened. Threads may share an
    instance; processes get copies. Empty lines at the end are no lines.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        """Finds the lines.

        Raises:
          UserError: the file cannot be read.
        """
        self.path = path
        try:
            self._bounds = _bounds(path)
            while len(self) and not self[len(self) - 1].strip():
                self._bounds = self._bounds[:-1]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> bytes:
        """Line `number`, from 0.

        Raises:
          OSError: the file is gone.
        """
        first, last = self._bounds[number : number + 2].tolist()
        return os.pread(self._file.fileno(), last - first, first).rstrip(b"\r\n")

    @functools.cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")


def _bounds(path: Path) -> np.ndarray:
    """Where each line begins, and at last where the file ends: int64 [lines + 1]."""
    found, size = [np.zeros(1, np.int64)], 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (size + 1))
            size += len(chunk)
    bounds = np.concatenate(found)
    return bounds if bounds[-1] == size else np.append(bounds, size)
