"""InternVL's annotation files: one JSON record a line, with the names of image files beside the turns.

Records are of text alone, of one image, or of several (`image` is a list):

    {"image": "a/b.jpg",
     "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}

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
from typing import Any, NamedTuple, NoReturn

from vlm_jax.data.conversation import IMAGE, Conversation, Reason, RecordError, Turn
from vlm_jax.data.lines import Lines
from vlm_jax.data.schema import SPEAKERS

_ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
_HEADER = 1 << 16  # bytes of a JPEG file in which its size stands, if nobody wrote much else into it


@dataclasses.dataclass(frozen=True)
class AnnotationSource:
    """The records of one annotation file.

    Attributes:
      task: name of the source, under which its records count.
      lines: of the file.
      count: the records are its first so many lines.
      root: folder that image files are named from, and that they must lie in, links followed.
      max_tiles: of its images, instead of the layout's.
      augment: see `Conversation`.
      index_folder: where an index is kept if the file's own folder cannot be written to.
    """

    task: str
    lines: Lines
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
        """The record in line `index`, from 0.

        Raises:
          RecordError: naming file, line and field.
        """
        return self._read(index, header=False)

    def peek(self, index: int) -> Conversation:
        """The same with the beginnings of its JPEG files."""
        return self._read(index, header=True)

    def place(self, index: int) -> str:
        """What messages call the record."""
        return f"{self.lines.path}:{index + 1}"

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
        place = self.place(index)
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
            _bad(place, "outside", "image", f"{name} is an address, not a file; copy the files into a folder first")
        try:
            path = os.path.realpath(os.path.join(self._real_root, name))
            if os.path.commonpath([self._real_root, path]) != self._real_root:
                _bad(place, "outside", "image", f"{name} lies outside of the source's root {self.root}")
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
                _bad(place, "missing", "image", f"{path} is not a file")
            with open(path, "rb") as file:
                start = file.read(_HEADER)
                return start if header and start.startswith(b"\xff\xd8") else start + file.read()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            _bad(place, "missing", "image", f"{name!r} cannot be read from {self.root}: {reason}")


class Record(NamedTuple):
    """What one line says: the turns, and the names of the image files that their marks stand for."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...]


def parse(line: bytes, place: str) -> Record:
    """Reads one record.

    Args:
      line: JSON text in UTF-8.
      place: what to call it in an error.

    Raises:
      RecordError: naming the field.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "the line is empty" if not line.strip() else f"not valid JSON: {error}"
        raise RecordError(place, "json", " ".join(reason.split())) from None
    if not isinstance(fields, dict):
        raise RecordError(place, "type", f"must be a JSON object, got {_kind(fields)}")
    if fields.get("video"):
        _bad(place, "video", "video", "records with a video cannot be read yet")
    record = Record(_turns(fields.get("conversations"), place), _images(fields.get("image"), place))
    marks = sum(turn.text.count(IMAGE) for turn in record.turns if turn.role == "user")
    # Of a single image the mark may be missing: it then stands before the first question (`templates.render`).
    if marks != len(record.images) and not (len(record.images) == 1 and not marks):
        _bad(place, "marks", "conversations", f"{marks} {IMAGE} mark(s) for {len(record.images)} image(s)")
    return record


def _turns(messages: Any, place: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list):
        _bad(place, "type", "conversations", f"must be a list, got {_kind(messages)}")
    turns = []
    for number, message in enumerate(messages):
        field = f"conversations[{number}]"
        if not isinstance(message, dict):
            _bad(place, "type", field, f"must be an object, got {_kind(message)}")
        speaker, text = message.get("from"), message.get("value")
        role = _ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            _bad(place, "type", f"{field}.from", f"must be {', '.join(map(repr, _ROLES))}, got {_shown(speaker)}")
        _check_text(text, place, f"{field}.value")
        turns.append(Turn(role, text))
    _check_turns(turns, place)
    return tuple(turns)


def _check_turns(turns: list[Turn], place: str) -> None:
    """Questions and answers in turn, after a system text if there is one, and no answer empty."""
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns[first:], start=first):
        expected = "assistant" if (number - first) % 2 else "user"
        if turn.role != expected:
            found = f"expected {SPEAKERS[expected]!r}, got {SPEAKERS[turn.role]!r}"
            _bad(place, "turns", f"conversations[{number}].from", found)
        if turn.role == "assistant" and not turn.text.strip():
            _bad(place, "empty answer", f"conversations[{number}].value", "the answer is empty")
    if len(turns) == first or turns[-1].role != "assistant":
        _bad(place, "turns", "conversations", "the last turn must be an answer ('gpt')")


def _images(image: Any, place: str) -> tuple[str, ...]:
    if image is None or image in ("", []):
        return ()
    for number, name in enumerate(image if isinstance(image, list) else [image]):
        _check_text(name, place, f"image[{number}]" if isinstance(image, list) else "image")
    return tuple(image) if isinstance(image, list) else (image,)


def _check_text(text: Any, place: str, field: str) -> None:
    if not isinstance(text, str):
        _bad(place, "type", field, f"must be text, got {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write half of a character
        _bad(place, "type", field, f"is not valid Unicode: {_shown(text)}")


def _bad(place: str, reason: Reason, field: str, problem: str) -> NoReturn:
    raise RecordError(place, reason, f"{field}: {problem}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
