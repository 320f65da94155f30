"""Annotation files: records in JSON, with the names of image files beside the turns.

A file is InternVL's, one record a line, or LLaVA's and ShareGPT's, one JSON list; `records.py` says what a record may
look like.

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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.formats.frames import FRAMES, FrameRange, choose_frames, frame_count
from vlm_jax.data.formats.json_list import JsonList
from vlm_jax.data.formats.lines import Lines
from vlm_jax.data.formats.records import LAYOUTS, Record, parse, with_frames
from vlm_jax.data.formats.root import Root
from vlm_jax.data.formats.video import open_video


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
      root: folder that image and video files are named from, and that they must lie in, links followed.
      max_tiles: of its images, instead of the layout's; a frame of a video is one tile.
      augment: see `Conversation`.
      frames: of a video; how many of them a record has follows from its number and the video's name.
      index_folder: where an index is kept if the file's own folder cannot be written to.
    """

    task: str
    lines: Lines | JsonList
    count: int
    root: Path
    max_tiles: int | None = None
    augment: bool = False
    frames: FrameRange = FRAMES
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
        return self._read(index, None)

    def draw(self, index: int, key: Sequence[int]) -> Conversation:
        """The same with frames of a video drawn at random, one in each interval; `key` seeds what is drawn."""
        return self._read(index, np.random.default_rng([*key, 1]))  # by itself, `key` draws what is done with tiles

    def peek(self, index: int) -> Conversation:
        """The same with the beginnings of its JPEG files, and of frames of a video their size."""
        return self._read(index, None, header=True)

    def place(self, index: int) -> str:
        """What messages call the record."""
        return f"{self.lines.path}:{index + 1}"

    def fingerprint(self) -> str:
        """Digest of what the records' sizes depend on, except for the images' files, of which there may be millions."""
        file = self.lines.path.stat()
        parts = [self.task, file.st_size, file.st_mtime_ns, self.count, self._root.real, self.max_tiles, self.frames]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @functools.cached_property
    def _root(self) -> Root:
        return Root(self.root)

    def _read(self, index: int, rng: np.random.Generator | None, header: bool = False) -> Conversation:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name}: no record number {index}, there are {self.count}")
        place = self.place(index)
        record = parse(self.lines[index], place)
        if record.video:
            images = self._frames(record, index, place, rng, header)
            record = with_frames(record, len(images))
        else:
            images = [self._root.read(image, place, "image", header) for image in record.images]
        return Conversation(
            turns=record.turns,
            images=tuple(images),
            id=f"{self.task}:{index + 1}",
            task=self.task,
            place=place,
            max_tiles=1 if record.video else self.max_tiles,
            augment=self.augment,
        )

    def _frames(
        self, record: Record, index: int, place: str, rng: np.random.Generator | None, header: bool
    ) -> Sequence[bytes]:
        """The frames of a video as image files, or as many times a size."""
        with open_video(self._root, record.video, record.clip, place) as video:
            count = frame_count(f"{index}:{record.video}", video.count(), self.frames)
            if header:
                return [video.header()] * count
            return video.read(lambda available: choose_frames(available, count, rng).tolist())
