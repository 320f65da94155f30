"""Parquet files with the pictures inside, as the Hugging Face hub stores data sets of images and conversations.

Columns: `image` or `images`, a struct of `bytes` and `path` (or bytes alone), one or a list; and the turns in any
layout of `records.py`: `conversations`, `messages`, `texts`, or `question` with `answer` or `answers`. A list
may also be stored as JSON text. Other columns are not read. It takes pyarrow: `pip install 'vlm_jax[parquet]'`.

A file can be read no finer than by row groups. Records in their order cost each group once; records at random cost a
group each, so data of many gigabytes is better prepared once (`python -m vlm_jax.data.build`).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.formats.records import LAYOUTS, bad, read_turns
from vlm_jax.data.formats.root import natural_order
from vlm_jax.errors import UserError

_COLUMNS = ("image", "images", "conversations", "messages", "texts", "question", "answer", "answers", "system")
_CACHE = 1 << 26  # bytes of row groups kept, and one at least
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])")
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """The rows of one or more Parquet files, one after another.

    Attributes:
      files: in their order.
      task: name of the source, under which its records count.
      max_tiles: of its images, instead of the layout's.
      augment: see `Conversation`.
      index_folder: where an index is kept if the files' own folder cannot be written to.
    """

    files: tuple[Path, ...]
    task: str
    max_tiles: int | None = None
    augment: bool = False
    index_folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetSource, (self.files, self.task, self.max_tiles, self.augment, self.index_folder)  # no open files

    @property
    def name(self) -> str:
        """Name of the source and of its file or folder."""
        return f"{self.task} ({self.files[0] if len(self.files) == 1 else self.files[0].parent})"

    @property
    def folder(self) -> Path:
        """Where its index is kept."""
        beside = self.files[0].parent
        return beside if self.index_folder is None or os.access(beside, os.W_OK) else self.index_folder

    def __len__(self) -> int:
        return int(self._groups.ends[-1])

    def __getitem__(self, index: int) -> Conversation:
        """Record `index`, from 0; its place is `file:row`, from 1.

        Raises:
          RecordError: naming file, row and column; or the file is damaged there.
          UserError: a file cannot be opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: no record number {index}, there are {len(self)}")
        file, group, row, row_of_group = self._groups.find(index)
        place = f"{self.files[file]}:{row + 1}"
        try:
            fields = self._groups.read(file, group, row_of_group)
        except ValueError as error:
            raise RecordError(place, "missing", f"cannot be read: {error}") from None
        images = _images(fields, place)
        return Conversation(
            turns=read_turns({name: _plain(fields[name], place, name) for name in fields}, place, len(images)),
            images=images,
            id=f"{self.task}:{index + 1}",
            task=self.task,
            place=place,
            max_tiles=self.max_tiles,
            augment=self.augment,
        )

    def place(self, index: int) -> str:
        """What messages call the record."""
        file, _, row, _ = self._groups.find(index)
        return f"{self.files[file]}:{row + 1}"

    def fingerprint(self) -> str:
        """Digest of the names, sizes and times of its files."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return hashlib.sha256(json.dumps([self.task, files, self.max_tiles]).encode()).hexdigest()

    @functools.cached_property
    def _groups(self) -> _Groups:
        return _Groups(self.files)


def open_parquet(path: Path, split: str = "train", **options: Any) -> ParquetSource:
    """Opens a Parquet file, or those of a folder or of its `data` folder, in the natural order of their names.

    Where the names say splits, as the hub's do (`train-00000-of-00004.parquet`), one of them is read.

    Args:
      path: of the file or folder.
      split: `train`, `validation` or `test`.
      **options: of `ParquetSource`; the task is by default the file's or folder's name.

    Raises:
      UserError: pyarrow is not installed; no such files, no such split, or columns that no conversation is in.
    """
    files = [path] if path.is_file() else parquet_files(path)
    if not files:
        raise UserError(f"{path}: has no .parquet files")
    if path.is_dir():
        by_split: dict[str, list[Path]] = {}
        for file in files:
            found = _SPLIT.match(file.stem.lower())
            by_split.setdefault(_SPLITS.get(found[1], found[1]) if found else "", []).append(file)
        if set(by_split) != {""}:
            if split not in by_split:
                known = ", ".join(sorted(name or "files of no split's name" for name in by_split))
                raise UserError(f"{path}: no files of split '{split}' ({split}-*.parquet), there are {known}")
            files = by_split[split]
    source = ParquetSource(**{"files": tuple(files), "task": _name(path), **options})
    if not len(source):
        raise UserError(f"{path}: the data set is empty")
    return source


def _name(path: Path) -> str:
    path = path.resolve()
    return path.stem if path.suffix == ".parquet" else path.name


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or else of its `data` folder, sorted by name with numbers as numbers."""
    for place in (folder, folder / "data"):
        if files := [file for file in place.glob("*.parquet") if file.is_file()]:
            return sorted(files, key=lambda file: natural_order(file.name))
    return []


class _Groups:
    """Row groups of several files, of which the last ones read are kept. Threads may share an instance."""

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError("reading Parquet needs pyarrow: pip install 'vlm_jax[parquet]'") from None
        self._files, self._columns, self._places = [], [], []
        ends = []
        for number, path in enumerate(files):
            try:
                file = pyarrow.parquet.ParquetFile(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{path}: cannot read this Parquet file: {_reason(error)}") from None
            self._columns.append(_known_columns(path, file.schema_arrow.names))
            self._files.append(file)
            row = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                self._places.append((number, group, row))
                row += rows
                ends.append(rows)
        self.ends = np.cumsum(ends, dtype=np.int64) if ends else np.zeros(1, np.int64)
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, index: int) -> tuple[int, int, int, int]:
        """Number of the file, of the group in it, of the row in the file, and of the row in the group."""
        number = bisect.bisect_right(self.ends, index)
        row = index - int(self.ends[number - 1] if number else 0)
        file, group, first = self._places[number]
        return file, group, first + row, row

    def read(self, file: int, group: int, row: int) -> dict[str, Any]:
        """The known columns of a row.

        Raises:
          ValueError: the file is damaged there.
        """
        import pyarrow

        try:
            table = self._table(file, group)
            return {name: table.column(name)[row].as_py() for name in table.column_names}
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(_reason(error)) from None

    def _table(self, file: int, group: int) -> Any:
        with self._lock:
            table = self._kept.pop((file, group), None)
            if table is None:
                table = self._files[file].read_row_group(group, columns=self._columns[file])
                room = _CACHE - table.nbytes
                while self._kept and sum(kept.nbytes for kept in self._kept.values()) > room:
                    self._kept.popitem(last=False)
            self._kept[file, group] = table  # the last of them
            return table


def _known_columns(path: Path, names: Sequence[str]) -> list[str]:
    known = [name for name in _COLUMNS if name in names]
    if twice := [name for name in known if names.count(name) > 1]:
        raise UserError(f"{path}: there are several columns '{twice[0]}'")
    has_question = "question" in names and ("answer" in names or "answers" in names)
    if not has_question and not any(name in names for name in LAYOUTS if name != "question"):
        raise UserError(
            f"{path}: no column holds conversations: expected conversations, messages, texts, or question with answer "
            f"or answers; there are {', '.join(names) or 'none'}"
        )
    return known


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _images(fields: dict[str, Any], place: str) -> tuple[bytes, ...]:
    """Takes the pictures out of a row."""
    columns = [(name, fields.pop(name)) for name in ("image", "images") if name in fields]
    given = [(name, value) for name, value in columns if value is not None and value != []]
    if not given:
        return ()
    if len(given) > 1:
        bad(place, "type", "images", "the pictures are in image already")
    name, value = given[0]
    if not isinstance(value, list):
        return (_bytes(value, place, name),)
    return tuple(_bytes(picture, place, f"{name}[{number}]") for number, picture in enumerate(value))


def _bytes(picture: Any, place: str, field: str) -> bytes:
    if isinstance(picture, dict) and picture.keys() <= {"bytes", "path"}:
        if picture.get("bytes") is None:
            bad(place, "missing", f"{field}.bytes", f"there are none, only the path {picture.get('path')!r}")
        picture = picture["bytes"]
    if not isinstance(picture, bytes):
        bad(place, "type", field, f"must be a struct of bytes and path, or bytes, got {type(picture).__name__}")
    return picture


def _plain(value: Any, place: str, field: str) -> Any:
    """A column's value; a list may be stored as JSON text."""
    if not isinstance(value, str) or field not in ("conversations", "messages", "texts"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        bad(place, "json", field, f"not valid JSON: {' '.join(str(error).split())}")
