"""Records as recipes look at them: an id that does not depend on where a record stands, its turns, its pictures' names.

Of an annotation file no picture is opened for this. Pictures of data sets that hold them inside (Parquet, TFDS) are
stored as files where a recipe writes records that need them (`written.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.records import parse
from vlm_jax.data.sources import PeekableSource, Source

_NAMES = ("image", "images", "video", "videos")


class Item(NamedTuple):
    """A record.

    Attributes:
      id: its own `id` where it has one, otherwise a digest of its content.
      task: the source that it counts under.
      turns: its messages.
      images: names of its image files as its source has them; none where the source holds the pictures themselves.
    """

    id: str
    task: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()

    def questions(self) -> list[tuple[str, str]]:
        """Every question with its answer, without the marks of pictures."""
        texts = [turn.text.replace(IMAGE, "").strip() for turn in self.turns if turn.role != "system"]
        return list(zip(texts[::2], texts[1::2], strict=True))


def read_item(source: Source, number: int) -> Item:
    """Record `number` of a single source.

    Raises:
      RecordError: it cannot be read.
    """
    if isinstance(source, AnnotationSource):
        line = source.lines[number]
        record = parse(line, source.place(number))
        own = json.loads(line.decode("utf-8-sig")).get("id")
        name = str(own) if isinstance(own, int | str) and own != "" else hashlib.sha256(line).hexdigest()[:32]
        return Item(name, source.task, record.turns, record.images)
    conversation = source.peek(number) if isinstance(source, PeekableSource) else source[number]
    return Item(conversation.id, conversation.task, conversation.turns)


def content_key(item: Item) -> str:
    """Digest of what a record says and of which pictures: equal in copies whose marks or folders differ.

    LLaVA's files name a picture with and without the folder of its data set, and put the mark before or behind the
    first question; so only the last part of a name counts, and no mark.
    """
    texts = [[turn.role, turn.text.replace(IMAGE, "").strip()] for turn in item.turns]
    names = [os.path.basename(name) for name in item.images]
    return hashlib.sha256(json.dumps([texts, names]).encode()).hexdigest()


def file_names(fields: Mapping[str, Any]) -> list[str]:
    """Names of all files that a record has, in the fields that `records.py` reads."""
    found = []
    for field in _NAMES:
        value = fields.get(field)
        found += [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]
    return found


def with_file_names(fields: Mapping[str, Any], new: Mapping[str, str]) -> dict[str, Any]:
    """A copy of a record whose files have other names: `new` says which, name by name."""
    copy = dict(fields)
    for field in _NAMES:
        if isinstance(value := copy.get(field), list):
            copy[field] = [new.get(name, name) if isinstance(name, str) else name for name in value]
        elif isinstance(value, str):
            copy[field] = new.get(value, value)
    return copy


def separate(conversation: Conversation) -> list[Conversation]:
    """One conversation for each question where questions are independent of each other, otherwise the one.

    Annotation files cannot say that questions are independent; as conversations of their own they remain so.
    """
    if not conversation.independent:
        return [conversation]
    first = 1 if conversation.turns[0].role == "system" else 0
    system, turns = conversation.turns[:first], conversation.turns[first:]
    end = turns[0].text.rfind(IMAGE) + len(IMAGE) if IMAGE in turns[0].text else 0
    images, own = turns[0].text[:end], turns[0].text[end:].lstrip("\n")
    made = []
    for number in range(0, len(turns), 2):
        text = turns[number].text if number else own
        question = Turn("user", f"{images}\n{text}" if images else text)
        made.append(
            Conversation(
                (*system, question, turns[number + 1]), conversation.images, f"{conversation.id}-{number // 2}"
            )
        )
    return made
