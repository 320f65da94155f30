"""Files that a record names: found in a data set's root folder, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from vlm_jax.data.formats.records import bad

_HEADER = 1 << 16  # bytes of a JPEG file in which its size stands, if nobody wrote much else into it


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts names as people count: `frame2` stands before `frame10`."""
    return [(int(part), part) if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


class Root:
    """A folder that names of files count from, and that the files must lie in, links followed.

    Attributes:
      folder: as the user wrote it, for messages.
    """

    def __init__(self, folder: Path) -> None:
        """It need not exist, as long as no record names a file."""
        self.folder = folder
        self.real = os.path.realpath(folder)

    def find(self, name: str, place: str, field: str) -> str:
        """The path of a file or folder.

        Raises:
          RecordError: the name leads outside.
        """
        if "://" in name:
            bad(place, "outside", field, f"{name} is an address, not a file; copy the files into a folder first")
        try:
            path = os.path.realpath(os.path.join(self.real, name))
            inside = os.path.commonpath([self.real, path]) == self.real
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            self.missing(name, error, place, field)
        if not inside:
            bad(place, "outside", field, f"{name} lies outside of the source's root {self.folder}")
        return path

    def read(self, name: str, place: str, field: str, header: bool = False) -> bytes:
        """A file's bytes; of a JPEG file those that its size is likely to stand in, if `header` says so.

        Raises:
          RecordError: there is no such file inside.
        """
        path = self.find(name, place, field)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
                bad(place, "missing", field, f"{path} is not a file")
            with open(path, "rb") as file:
                start = file.read(_HEADER)
                return start if header and start.startswith(b"\xff\xd8") else start + file.read()
        except (OSError, ValueError) as error:
            self.missing(name, error, place, field)

    def missing(self, name: str, error: Exception, place: str, field: str) -> NoReturn:
        """Raises what is to be said of a file that cannot be read.

        Raises:
          RecordError: always.
        """
        reason = getattr(error, "strerror", None) or str(error)
        bad(place, "missing", field, f"{name!r} cannot be read from {self.folder}: {reason}")
