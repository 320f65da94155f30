"""What a task's drawing function returns: a picture, what can be asked about it, and what it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from PIL import Image

TASKS = ("digits", "count", "document", "chart", "point", "photo")
"""Names of the tasks, as every report shows them."""

CURRICULUM = ("reading", "finding", "looking", "searching")
"""Tasks of the training split alone, about pictures of one tile. `reading`: the transcription of a 3×3 grid of digits.
`finding`: cells, rows and columns of one as well. `looking`: in turn all of `TASKS` but digits. `searching`: where a
digit of a grid is, and sums of two neighbours."""

READ = "Read everything."
"""What asks for a transcription, in one wording: then every word of it has its place at a fixed distance from the
picture, and a small model finds out in a few thousand conversations where to look. Two wordings take it several times
as many."""

SPLITS = ("train", "validation", "test")

_SHARES = {"train": 14, "validation": 2, "test": 4}
"""Twentieths of all possible contents that belong to a split."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, right and bottom exclusive."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a picture. `kind` names it among the task's kinds, over which test questions are balanced."""

    kind: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn picture.

    Attributes:
      image: RGB.
      questions: what can be asked; a question of the kind that was asked for comes first.
      transcription: everything in the picture as text; the dense supervision of the training split.
      provenance: which raw material was used, under the keys `digits` (indices), `regions` (`photograph/cell`) and
        `content` (what a document or chart says). No value of these is in two splits.
    """

    image: Image.Image
    questions: tuple[Question, ...]
    transcription: Question
    provenance: dict[str, Any]


def split_of(content: str) -> str:
    """The one split that a document or chart saying `content` may be in.

    The digest of the content decides, so two processes drawing two splits need not tell each other what they drew.
    """
    place = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % sum(_SHARES.values())
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares cover every place")
