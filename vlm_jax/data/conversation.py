"""Conversations: the form that every data source is read into before anything else happens to it."""

from __future__ import annotations

import dataclasses
from typing import Literal

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
    """

    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    id: str = ""
    task: str = ""
    independent: bool = False
