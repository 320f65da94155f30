"""Sources: random access to conversations, whatever they are stored in.

A source is anything with a length, `source[i] -> Conversation` and a `name`. One that lies in files also says where and
gives a fingerprint of its content, so that what was computed from it can be kept beside it. It may also have weights
of its own, or a quick look at its records. Sources must be picklable: worker processes get a copy.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from vlm_jax.data.conversation import Conversation


class Source(Protocol):
    """A sequence of conversations with a name for messages."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


@runtime_checkable
class StoredSource(Protocol):
    """A source in files.

    Attributes:
      folder: where an index of it may be written.
    """

    folder: Path

    def fingerprint(self) -> str:
        """Changes when the content changes."""
        ...


@runtime_checkable
class PeekableSource(Protocol):
    """A source that can be measured without reading all of its images."""

    def peek(self, index: int) -> Conversation:
        """The record, with as much of each image's file as its size in pixels is likely to be read from."""
        ...


@runtime_checkable
class DrawnSource(Protocol):
    """A source of which something may be drawn at random in training, without changing a record's size."""

    def draw(self, index: int, key: Sequence[int]) -> Conversation:
        """The record as `key`, of integers from 0, decides; the same key always gives the same one."""
        ...


def draw(source: Source, index: int, key: Sequence[int]) -> Conversation:
    """A record for training: as `key` decides, where the source has something to draw."""
    return source.draw(index, key) if isinstance(source, DrawnSource) else source[index]


@runtime_checkable
class WeighedSource(Protocol):
    """A source that says how often its records are used where a recipe does not.

    Attributes:
      weights: task -> weight (`MixtureConfig.weights`); of tasks that are not named it is 1.
    """

    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ManySources:
    """Several sources one after another, each with an index of its own.

    Attributes:
      parts: the sources.
      name: of all together, for messages.
      weights: see `WeighedSource`.
    """

    parts: tuple[Source, ...]
    name: str
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self._ends[-1] if self.parts else 0

    def __getitem__(self, index: int) -> Conversation:
        part, number = self.part(index)
        return part[number]

    def draw(self, index: int, key: Sequence[int]) -> Conversation:
        """See `DrawnSource`."""
        return draw(*self.part(index), key)

    def part(self, index: int) -> tuple[Source, int]:
        """The source that holds record number `index`, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: no record number {index}, there are {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """Conversations held in memory.

    Attributes:
      conversations: the records.
      name: name for messages.
    """

    conversations: Sequence[Conversation]
    name: str = "memory"

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Conversation:
        return self.conversations[index]


def single(source: Source, number: int) -> tuple[Source, int]:
    """The single source that holds a record, and the record's number there."""
    while isinstance(source, ManySources):
        source, number = source.part(number)
    return source, number


def parts_of(source: Source) -> list[Source]:
    """The single sources that a source is made of, in order."""
    if not isinstance(source, ManySources):
        return [source]
    return [single for part in source.parts for single in parts_of(part)]


def place_of(source: Source, number: int) -> str:
    """What messages call a record of a source, without reading it."""
    source, number = single(source, number)
    place = getattr(source, "place", None)
    return place(number) if place else f"{source.name}:{number + 1}"
