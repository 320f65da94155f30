"""Annotation files: records in JSON, with the names of image files beside the turns.

A file is InternVL's, one record a line, or LLaVA's and ShareGPT's, one JSON list; `vlm_jax.data.records` says what a
record may look like.

Source: the chat data format of InternVL's documentation, and `LazySupervisedDataset` in
`internvl/train/internvl_chat_finetune.py`. That one replaces whatever it cannot use by another record at random; here
every such record is an error that names its line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import stat
from pathlib import Path

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.json_list import JsonList
from vlm_jax.data.lines import Lines
from vlm_jax.data.records import LAYOUTS, bad, parse

_HEADER = 1 << 16  # bytes of a JPEG file in which its size stands, if nobody wrote much else into it


def open_lines(path: Path) -> Lines | JsonList:
    """The records of a `.jsonl` or `.json` file; the latter may also hold one record a line, as some do.

    Raises:
      UserError: it cannot be read, or is neither.
    """
    if path.suffix == ".jsonl" or is_json_lines(path):
        return Lines(path)
    return JsonList(path)


def is_json_lines(path: Path) -> bool:
    """Whether the first line of a file is a record by itself."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline(1 << 24).decode("utf-8-sig"))
            return isinstance(record, dict) and any(field in record for field in LAYOUTS)
    except (OSError, ValueError, RecursionError):
        return False


@dataclasses.dataclass(frozen=True)
class AnnotationSource:
    """The records of one annotation file.

    Attributes:
      task: name of the source, under which its records count.
      lines: the file's lines, or the elements of its list.
      count: the records are its first so many.
      root: folder that image files are named from, and that they must lie in, links followed.
      max_tiles: of its images, instead of the layout's.
      augment: see `Conversation`.
      index_folder: where an index is kept if the file's own folder cannot be written to.
    """

    task: str
    lines: Lines | JsonList
    count: int
    root: Path
    max_tiles: int | None = None
    augment: bool = False
    index_folder: Path | None = None

    @property
    def name(self) -> str:
        """Name of the source and of its file."""
        return f"{self.task} ({self.lines.path})"

    @property
    def folder(self) -> Path:
        """Where its index is kept."""
        beside = self.lines.path.parent
        return beside if self.index_folder is None or os.access(beside, os.W_OK) else self.index_folder

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Conversation:
        """The record in line `index`, or element, from 0; its place is `file:number`, from 1.

        Raises:
          RecordError: naming file, line and field.
        """
        return self._read(index, header=False)

    def peek(self, index: int) -> Conversation:
        """The same with the beginnings of its JPEG files."""
        return self._read(index, header=True)

    def fingerprint(self) -> str:
        """Digest of what the records' sizes depend on, except for the images' files, of which there may be millions."""
        file = self.lines.path.stat()
        parts = [self.task, file.st_size, file.st_mtime_ns, self.count, self._real_root, self.max_tiles]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @functools.cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    def _read(self, index: int, header: bool) -> Conversation:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name}: no record number {index}, there are {self.count}")
        place = f"{self.lines.path}:{index + 1}"
        record = parse(self.lines[index], place)
        return Conversation(
            turns=record.turns,
            images=tuple(self._image(image, place, header) for image in record.images),
            id=f"{self.task}:{index + 1}",
            task=self.task,
            place=place,
            max_tiles=self.max_tiles,
            augment=self.augment,
        )

    def _image(self, name: str, place: str, header: bool) -> bytes:
        """The bytes of an image file, or enough of them to read its size."""
        if "://" in name:
            bad(place, "outside", "image", f"{name} is an address, not a file; copy the files into a folder first")
        try:
            path = os.path.realpath(os.path.join(self._real_root, name))
            if os.path.commonpath([self._real_root, path]) != self._real_root:
                bad(place, "outside", "image", f"{name} lies outside of the source's root {self.root}")
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
                bad(place, "missing", "image", f"{path} is not a file")
            with open(path, "rb") as file:
                start = file.read(_HEADER)
                return start if header and start.startswith(b"\xff\xd8") else start + file.read()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            bad(place, "missing", "image", f"{name!r} cannot be read from {self.root}: {reason}")
