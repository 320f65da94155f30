"""Words with their places in a picture, from whatever found them: JSON of any OCR, or Tesseract's tables.

    {"image": "a.jpg", "words": [{"text": "SALE", "box": [10, 12, 96, 40], "confidence": 0.98}, ...]}

A box is left, top, right, bottom in pixels, or four corners [[x, y], ...] clockwise from the upper left of the text as
it is read (EasyOCR and PaddleOCR give those), which say how the text is turned.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlm_jax.data.formats.records import bad

_WORD_LEVEL = "5"  # of Tesseract's tables, which also have rows for pages, blocks, paragraphs and lines
_COLUMNS = ("level", "left", "top", "width", "height", "conf", "text")


class Word(NamedTuple):
    """A word, or a few that were found together.

    Attributes:
      text: without white space around it.
      x, y: its middle in pixels, y downwards.
      width, height: along the text and across; of the upright box around it where the angle is not known.
      angle: of the text in radians, positive clockwise, or None.
    """

    text: str
    x: float
    y: float
    width: float
    height: float
    angle: float | None = None


def word_of_box(text: str, box: Sequence[float]) -> Word:
    """The word in an upright box: left, top, right, bottom in pixels."""
    left, top, right, bottom = box
    return Word(text.strip(), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def word_of_corners(text: str, corners: Sequence[Sequence[float]]) -> Word:
    """The word between four corners, clockwise from the upper left one of the text as it is read, in pixels."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    across, down = (bx - ax + cx - dx) / 2, (by - ay + cy - dy) / 2
    height = (math.hypot(dx - ax, dy - ay) + math.hypot(cx - bx, cy - by)) / 2
    middle = (ax + bx + cx + dx) / 4, (ay + by + cy + dy) / 4
    return Word(text.strip(), *middle, math.hypot(across, down), height, math.atan2(down, across))


def words_from_json(words: Any, place: str, min_confidence: float = 0.0) -> list[Word]:
    """The `words` of a record; those without text are left out, and those below a confidence.

    Args:
      words: as JSON gives them.
      place: what to call the record in an error.
      min_confidence: in the unit of the records; words that say none are kept.

    Raises:
      RecordError: naming the field.
    """
    if not isinstance(words, list):
        bad(place, "type", "words", "must be a list of words with their boxes")
    found = []
    for number, word in enumerate(words):
        name = f"words[{number}]"
        if not isinstance(word, Mapping) or not isinstance(word.get("text"), str):
            bad(place, "type", name, "must be an object with text and box")
        confidence = word.get("confidence")
        if confidence is not None and not _is_number(confidence):
            bad(place, "type", f"{name}.confidence", f"must be a number, got {confidence!r}")
        read = _placed(word["text"], word.get("box"), place, f"{name}.box")
        if read.text and (confidence is None or confidence >= min_confidence):
            found.append(read)
    return found


def _placed(text: str, box: Any, place: str, field: str) -> Word:
    if _are_numbers(box, 4):
        if not (box[2] > box[0] and box[3] > box[1]):
            bad(place, "box", field, f"has its corners in the wrong order or no size: {box}")
        return word_of_box(text, box)
    if not (isinstance(box, list) and len(box) == 4 and all(_are_numbers(corner, 2) for corner in box)):
        bad(place, "type", field, "must be [left, top, right, bottom] in pixels, or four corners [x, y]")
    word = word_of_corners(text, box)
    if not (word.width > 0 and word.height > 0):
        bad(place, "box", field, f"has no size: {box}")
    return word


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_number, value))


def words_to_json(words: Sequence[Word]) -> list[dict[str, Any]]:
    """What `words_from_json` reads, with tenths of pixels; a word with an angle as four corners."""
    return [{"text": word.text, "box": _box(word)} for word in words]


def _box(word: Word) -> list[Any]:
    across, down = word.width / 2, word.height / 2
    if word.angle is None:
        return [round(side, 1) for side in (word.x - across, word.y - down, word.x + across, word.y + down)]
    cos, sin = math.cos(word.angle), math.sin(word.angle)
    corners = ((-across, -down), (across, -down), (across, down), (-across, down))
    return [[round(word.x + x * cos - y * sin, 1), round(word.y + x * sin + y * cos, 1)] for x, y in corners]


def words_from_tsv(table: str, place: str, min_confidence: float = 0.0) -> list[Word]:
    """The words of one page of Tesseract's TSV output.

    Args:
      table: its text, with the line of column names.
      place: what to call it in an error.
      min_confidence: in percent, as Tesseract gives it.

    Raises:
      RecordError: it is no such table.
    """
    rows = csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not set(_COLUMNS) <= set(rows.fieldnames or ()):
        bad(place, "type", "columns", f"not a TSV table of Tesseract, which has {', '.join(_COLUMNS)}")
    found = []
    for number, row in enumerate(rows, start=2):
        text = (row["text"] or "").strip()
        if row["level"] != _WORD_LEVEL or not text:
            continue
        try:
            left, top, width, height, confidence = (float(row[name]) for name in _COLUMNS[1:-1])
        except (TypeError, ValueError):
            bad(place, "type", f"row {number}", "its box or confidence is not a number")
        if confidence >= min_confidence and width > 0 and height > 0:
            found.append(word_of_box(text, (left, top, left + width, top + height)))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
