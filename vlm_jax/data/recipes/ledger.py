"""The ledger of replies: whatever a server answered is kept, as it came, and never asked for again.

One line for each request: `{"key": ..., "request": digest, "reply": {...}}`, or `"refused": text` in place of the
reply. A line is handed to the system before its thread goes on, so that a kill loses only what was under way; what a
crash left of a last line is dropped. While a run goes on, lines stand in the order of arrival; `finish` sorts them.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.errors import UserError

_BEGINNING = b'{"key": "'


class Entry(NamedTuple):
    """What became of a request.

    Attributes:
      key: names it.
      request: digest of what was asked.
      reply: the server's, or None.
      refused: why there will be none, or ''.
    """

    key: str
    request: str
    reply: dict[str, Any] | None
    refused: str = ""


class Ledger:
    """Entries by key, on disk; in memory only where each begins. Threads may share it, processes may not.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
          UserError: it cannot be opened, another process writes it, or it is no ledger.
        """
        self.path, self._lock = path, threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"{path}: another process is writing it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            self._read()
        except UserError:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def keys(self) -> list[str]:
        """Keys of all entries, sorted."""
        return sorted(self._places)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:  # threads that were left behind must not write into whatever gets the number next
            os.close(self._file)
            self._file = -1

    def get(self, key: str) -> Entry | None:
        """The entry of a request, if there is one."""
        with self._lock:
            place = self._places.get(key)
            line = b"" if place is None else os.pread(self._file, place[1], place[0])
        return _entry(line, str(self.path)) if line else None

    def add(self, entry: Entry) -> None:
        """Writes an entry.

        Raises:
          UserError: it cannot be written.
        """
        outcome = {"refused": entry.refused} if entry.reply is None else {"reply": entry.reply}
        line = json.dumps({"key": entry.key, "request": entry.request, **outcome}).encode() + b"\n"
        with self._lock:
            try:
                start = os.lseek(self._file, 0, os.SEEK_END)
                written = os.write(self._file, line)
                if written < len(line):
                    os.ftruncate(self._file, start)
                    raise OSError(0, "the disk is full")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
            self._places[entry.key] = (start, len(line))

    def entries(self) -> Iterator[Entry]:
        """All entries, by their keys."""
        for key in self.keys():
            entry = self.get(key)
            assert entry is not None, key
            yield entry

    def finish(self, keep: Iterable[str] | None = None) -> None:
        """Rewrites the file with its lines sorted by key, so that it does not tell in which order they came.

        Args:
          keep: keys of the entries that stay; None keeps all.

        Raises:
          UserError: it cannot be written.
        """
        kept = sorted(self._places.keys() if keep is None else self._places.keys() & set(keep))
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with aside.open("wb") as file:
                places = {}
                for key in kept:
                    start, size = self._places[key]
                    places[key] = (file.tell(), size)
                    file.write(os.pread(self._file, size, start))
                file.flush()
                os.fsync(file.fileno())
            new = os.open(aside, os.O_RDWR | os.O_APPEND)
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(aside, self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        os.close(self._file)
        self._file, self._places = new, places

    def _read(self) -> None:
        """Finds where every entry begins; drops what a crash left of a last one."""
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    if not self._places and not line.startswith(_BEGINNING[: len(line)]):
                        _entry(line, f"{self.path}:{number}")  # raises
                    os.ftruncate(self._file, start)
                    break
                key = _entry(line, f"{self.path}:{number}").key
                self._places[key] = (start, len(line))
                start += len(line)


def _entry(line: bytes, place: str) -> Entry:
    try:
        fields = json.loads(line)
        reply, refused = fields.get("reply"), fields.get("refused", "")
        if (
            not isinstance(fields["key"], str)
            or not isinstance(fields["request"], str)
            or (reply is None) == (not refused)
        ):
            raise ValueError
        return Entry(fields["key"], fields["request"], reply, refused)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{place}: not an entry of a list of replies; remove the file, or choose another --out"
        ) from None
