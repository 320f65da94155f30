"""Conversations: the form that every data source is read into before anything else happens to it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vlm_jax.errors import UserError

Role = Literal["system", "user", "assistant"]

IMAGE = "<image>"
"""The mark in a user's text that an image takes the place of, in order."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message. `text` holds `IMAGE` once for every image that stands in it."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns and the encoded images (PNG, JPEG, ... as bytes) that their `IMAGE` marks stand for, in order.

    Attributes:
      turns: the messages, an optional system message first, then user and assistant in turn.
      images: encoded image files.
      id: unique within its split; names the record in every message about it.
      task: the name under which reports count it (`digits`, `document`, ...).
      independent: every question is asked right behind the images, and what was asked and answered before is not seen:
        as many conversations about the same images, which are encoded once (Molmo, arXiv 2409.17146, trains so on
        images with several annotations). Images stand in the first question alone, before its text.
      place: where it is written, as `file:line`, if there is such a place; messages name it instead of the id.
      max_tiles: instead of the layout's, where its source says so (`max_dynamic_patch` of InternVL's meta files).
      augment: in training, its tiles are encoded as JPEG anew (`data_augment` of InternVL's meta files).
    """

    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    id: str = ""
    task: str = ""
    independent: bool = False
    place: str = ""
    max_tiles: int | None = None
    augment: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place or f"record {self.id}"


Reason = Literal[
    "json", "type", "turns", "marks", "empty answer", "box",
    "missing", "outside", "empty file", "bomb", "image", "video", "too long", "changed", "reply",
]  # fmt: skip
"""What can be wrong with a record, for counting: not JSON; a field missing or of a wrong type; roles out of order;
`IMAGE` marks that do not match the images; an answer without text; a box outside of the picture; an image file that is
missing; one outside of the source's root; one of no bytes; one of too many pixels (a decompression bomb); one that is
damaged, cut off or of no known format; a video; more than a row can hold; another size than when it was measured; what
a large model wrote when it was asked for a record."""


class RecordError(UserError):
    """A record of a data set that cannot be used; its message is `place: detail`.

    Attributes:
      place: the record, as `Conversation.name` gives it.
      reason: under which it counts.
      detail: what exactly is wrong, with the name of the field.
      task: of the record, where it could be read so far; '' otherwise.
    """

    def __init__(self, place: str, reason: Reason, detail: str, task: str = "") -> None:
        super().__init__(f"{place}: {detail}")
        self.place, self.reason, self.detail, self.task = place, reason, detail, task

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordError, (self.place, self.reason, self.detail, self.task)  # it crosses from worker processes
