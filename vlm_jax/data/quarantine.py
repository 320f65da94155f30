"""The quarantine: every record that could not be used, in a file, and the point at which that is too many.

`quarantine.jsonl` holds one row a record: `source` (the file's full path), `line` (in it from 1, or the record's number
or id where there are no lines), `reason` (one of `vlm_jax.data.conversation.Reason`) and `detail`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.sources import Source, parts_of
from vlm_jax.errors import UserError

LIMIT = 0.01
"""Share of all records that may be bad, by default."""


class Row(NamedTuple):
    """One row of the file."""

    source: str
    line: int | str
    reason: str
    detail: str

    @property
    def place(self) -> str:
        """`file:line`, or `file (record id)`."""
        if isinstance(self.line, int):
            return f"{self.source}:{self.line}" if self.source else f"record {self.line}"
        return f"{self.source} (record {self.line})" if self.source else f"record {self.line}"


class Quarantine:
    """The bad records of a data set, each once, however often it is met and the run is started again.

    Only one process may write a file. The file is made with the first row. A row is handed to the system before `add`
    returns, so that a kill loses nothing; the end of a file that a crash cut in the middle of a row is dropped.

    Attributes:
      path: of the file.
      rows: all of them, in the order in which they were met.
      counts: rows by reason.
    """

    def __init__(
        self,
        path: str | Path,
        total_records: int,
        limit: float = LIMIT,
        *,
        source: str = "",
        setting: str = "the limit",
    ) -> None:
        """Reads the file, if there is one.

        Args:
          path: of the file; its folder exists.
          total_records: of the whole data set, of which `limit` is a share.
          limit: share of the records that may be bad, from 0 to 1.
          source: what rows call the data set of records that are in no file of their own (TFDS).
          setting: what to change where more may be bad, for the message.

        Raises:
          UserError: the file cannot be read, or is no quarantine.
        """
        self.path, self.total_records, self.limit = Path(path), total_records, limit
        self._source, self._setting = source, setting
        self.rows = _read(self.path)
        self._earlier = bool(self.rows)
        self.counts = Counter(row.reason for row in self.rows)
        self._known = {(row.source, row.line) for row in self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, errors: Iterable[RecordError]) -> None:
        """Writes the records that are new, and refuses to go on if there are too many altogether.

        Raises:
          UserError: more than `limit` of all records are bad; or the file cannot be written.
        """
        self.write(errors)
        self.refuse_too_many()

    def write(self, errors: Iterable[RecordError]) -> None:
        """Writes the records that are new, however many there are.

        Raises:
          UserError: the file cannot be written.
        """
        new = []
        for error in errors:
            row = row_of(error, self._source)
            if (row.source, row.line) not in self._known:
                self._known.add((row.source, row.line))
                new.append(row)
        if not new:
            return
        try:
            with self.path.open("ab") as file:  # closed, and so flushed, each time: bad records are few
                file.write("".join(map(_as_line, new)).encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot write the list of bad records: {error.strerror}") from None
        self.rows += new
        self.counts.update(row.reason for row in new)

    def refuse_too_many(self) -> None:
        """Ends the work if more than `limit` of all records are bad.

        Raises:
          UserError: with the counts by reason, an example, the file and the setting.
        """
        if len(self.rows) > self.limit * self.total_records:
            stale = f"; if it was mended since, remove {self.path}" if self._earlier else ""
            raise UserError(
                f"{self.summary()}, but only {_percent(self.limit)} may be ({self._setting}). The first: "
                f"{_example(self.rows[0])}. All are listed in {self.path}. Mend the data, or let "
                f"`python -m vlm_jax.data.check --data=... --fix=OUT.json` write a copy without them{stale}"
            )

    def refuse_used_up(self, source: Source) -> None:
        """Ends the work if a source in files, or the whole, has no good record left.

        Raises:
          UserError: naming the source, with the counts by reason and an example.
        """
        for part in parts_of(source):
            files = _files(part) or {self._source}
            # Of a file that is used in part, only the first lines count.
            mine = (row for row in self.rows if row.source in files)
            if sum(isinstance(row.line, str) or row.line <= len(part) for row in mine) >= len(part):
                raise self.nothing_left(part)

    def nothing_left(self, source: Source) -> UserError:
        """What to raise where a source has no good record left.

        Args:
          source: the part of the data that is used up.
        """
        own = _files(source) or {self._source}
        rows = [row for row in self.rows if row.source in own] or self.rows
        example = f". The first: {_example(rows[0])}. All are listed in {self.path}" if rows else ""
        return UserError(f"{source.name}: no record is left that can be used ({_by_reason(rows)}){example}")

    def summary(self) -> str:
        """One line: how many, of how many, and why."""
        if not self.rows:
            return f"no bad record among {self.total_records:,}"
        share = _percent(len(self.rows) / max(self.total_records, 1))
        return f"{len(self.rows):,} of {self.total_records:,} records are bad ({share}: {_by_reason(self.rows)})"


def remove(path: str | Path) -> None:
    """Removes a quarantine file, so that counting starts anew; what is no quarantine stays.

    Raises:
      UserError: the file is no quarantine, or cannot be removed.
    """
    path = Path(path)
    _read(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed: {error.strerror}") from None


def row_of(error: RecordError, source: str = "") -> Row:
    """The row of a bad record; `source` names the data set where the record lies in no file with lines."""
    name = error.place.removeprefix("record ")
    file, _, number = name.rpartition(":")
    if name == error.place and file and number.isdecimal():
        return Row(os.path.abspath(file), int(number), error.reason, error.detail)
    return Row(source, int(name) if name.isdecimal() else name, error.reason, error.detail)


def _files(source: Source) -> set[str]:
    """What rows call the files that a source's records lie in; none where they lie in no files of their own."""
    file = getattr(getattr(source, "lines", None), "path", None)
    return {os.path.abspath(path) for path in ([file] if file else getattr(source, "files", ()))}


def _read(path: Path) -> list[Row]:
    """The rows of a file; what a crash left of a last one is cut off."""
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = [_row(line, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), start=1)]
        if len(whole) < len(content):
            if not rows and not content.startswith(b"{"):
                raise UserError(f"{path}:1: not a row of a quarantine file; choose another file")
            os.truncate(path, len(whole))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        fields: dict[str, Any] = json.loads(line)
        row = Row(**fields)
        fine = isinstance(row.line, int | str) and all(isinstance(v, str) for v in (row.source, row.reason, row.detail))
    except (ValueError, TypeError, RecursionError):
        fine = False
    if not fine:
        raise UserError(f"{where}: not a row of a quarantine file; remove the file, or choose another")
    return row


def _as_line(row: Row) -> str:
    # ASCII, so that no character of a record can end a line.
    return json.dumps(row._asdict()) + "\n"


def _by_reason(rows: Iterable[Row]) -> str:
    counts = Counter(row.reason for row in rows)
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common()) or "none is bad"


def _example(row: Row) -> str:
    return f"{row.place}: {row.detail}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
