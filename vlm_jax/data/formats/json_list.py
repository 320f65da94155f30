"""Random access to the elements of a JSON file that is one list, of any size: LLaVA's and ShareGPT's form.

The file is read once in pieces to find where its elements begin and end, and never held whole. JSON parsers that stream
(ijson) hand out values but not their places, so every record would have to be kept or read again from the beginning.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlm_jax.errors import UserError

_CHUNK = 1 << 23  # bytes searched at a time
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

_SPECIAL = bytes(byte if byte in b'"\\[]{},' else 0 for byte in range(256))
_DEPTH = np.zeros(256, np.int8)
_DEPTH[[ord("["), ord("{")]], _DEPTH[[ord("]"), ord("}")]] = 1, -1


class JsonList:
    """The elements of a JSON list, as the bytes between its commas; whether each is valid JSON is for its reader.

    Threads may share an instance; processes get copies.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        """Finds the elements.

        Raises:
          UserError: the file cannot be read, or is not one list from beginning to end.
        """
        self.path = path
        try:
            self._bounds = _elements(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, number: int) -> bytes:
        """Element `number`, from 0.

        Raises:
          OSError: the file is gone.
        """
        first, last = self._bounds[number].tolist()
        return os.pread(self._file.fileno(), last - first, first).strip(_BLANK)

    @functools.cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")


def _elements(path: Path) -> np.ndarray:
    """Where each element begins and ends: int64 [n, 2]."""
    with path.open("rb") as file:
        start = _list_start(file)
        if start is None:
            raise UserError(f"{path}: must be a JSON list of records, [{{...}}, ...]")
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        scanner, borders, end = _Scanner(), [], None
        place = start
        while end is None and (chunk := file.read(_CHUNK)):
            found, closing = scanner(chunk)
            borders.append(found + place)
            end = None if closing is None else place + closing
            place += len(chunk)
        if end is None:
            count = sum(map(len, borders)) + 1
            raise UserError(f"{path}: not valid JSON: the file ends within record {count}; was it copied whole?")
        file.seek(end + 1)
        if end + 1 < size and any(part.strip(_BLANK) for part in iter(lambda: file.read(_CHUNK), b"")):
            raise UserError(f"{path}: not valid JSON: something follows the end of the list, after byte {end}")
        borders = np.concatenate(borders)
        firsts, lasts = np.concatenate([[start], borders]) + 1, np.concatenate([borders, [end]])
        if not len(borders):
            file.seek(start + 1)
            if not file.read(end - start - 1).strip(_BLANK):
                return np.zeros((0, 2), np.int64)
    return np.stack([firsts, lasts], axis=1).astype(np.int64)


def _list_start(file: BinaryIO) -> int | None:
    """Where the list opens, or None if something else stands first."""
    head = file.read(4096)
    skipped = len(_BOM) if head.startswith(_BOM) else 0
    rest = head[skipped:].lstrip(_BLANK)
    return len(head) - len(rest) if rest.startswith(b"[") else None


class _Scanner:
    """Follows strings and depth through a file, piece by piece, from the list's opening bracket on.

    A quotation mark counts unless a run of backslashes of odd length stands before it; whatever stands behind an odd
    number of those that count is inside of a string, where nothing has a meaning.
    """

    def __init__(self) -> None:
        self.in_string, self.escaped, self.depth = False, False, 0

    def __call__(self, piece: bytes) -> tuple[np.ndarray, int | None]:
        """Places of the commas between elements, and that of the bracket that ends the list if the piece has it."""
        special = np.frombuffer(piece.translate(_SPECIAL), np.uint8)
        places = np.flatnonzero(special)  # few, so that what follows costs little
        kinds = special[places]
        is_quote = self._quotes(kinds, places, len(piece))
        outside = (np.cumsum(is_quote) + self.in_string) % 2 == 0
        self.in_string ^= bool(np.count_nonzero(is_quote) % 2)
        kinds, places = kinds[outside], places[outside]
        depths = self.depth + np.cumsum(_DEPTH[kinds], dtype=np.int64)
        if len(depths):
            self.depth = int(depths[-1])
        ends = np.flatnonzero((depths == 0) & (_DEPTH[kinds] < 0))
        end = int(places[ends[0]]) if len(ends) else None
        commas = places[(kinds == ord(",")) & (depths == 1)]
        return (commas if end is None else commas[commas < end]), end

    def _quotes(self, kinds: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
        """Which of the special bytes are quotation marks that count."""
        quotes, slashes = kinds == ord('"'), places[kinds == ord("\\")]
        if self.escaped and len(places) and places[0] == 0:
            quotes[0] = False
            slashes = slashes[1:] if len(slashes) and not slashes[0] else slashes
        self.escaped = False
        if len(slashes):
            begins = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
            lengths = np.diff(begins, append=len(slashes))
            escaped = (slashes[begins] + lengths)[lengths % 2 == 1]
            self.escaped = bool(len(escaped) and escaped[-1] == size)
            after = np.searchsorted(
                places, escaped
            )  # where an escaped byte stands among the special ones, if it is one
            after = after[after < len(places)]
            quotes[after[places[after] == escaped[: len(after)]]] = False
        return quotes
