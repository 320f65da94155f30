"""An example as one picture: the image, and below it the question, the answer and what the model said."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_jax.cli import plain
from vlm_jax.data.boxes import FULL, Box, parse_boxes
from vlm_jax.data.images import decode_image

SIDE = 384
"""Pixels of the longer side that images are enlarged, or shrunk, to; small ones by a whole factor, so that they stay
sharp."""

NARROWEST, MARGIN, TEXT, LINE = 320, 10, 15, 21
"""Pixels: the least width of a picture, the space around everything, the size of letters, a line's height."""

MOST_IMAGES, MOST_BOXES, MOST_LINES = 4, 10, 4
"""More images of a question, boxes of an answer and lines of a text are left out."""

PAPER, INK, GOLD = (255, 255, 255), (40, 44, 52), (28, 100, 200)
RIGHT, PARTLY, WRONG = (16, 130, 60), (190, 120, 0), (205, 35, 45)


class Example(NamedTuple):
    """A question and what the model said.

    Attributes:
      task: under which it counts.
      question, answer, prediction: texts.
      score: of the prediction, in [0, 1].
      images: the encoded pictures.
    """

    task: str
    question: str
    answer: str
    prediction: str
    score: float
    images: tuple[bytes, ...]


def draw_example(example: Example) -> np.ndarray:
    """Draws an example.

    Boxes in the answer and in what the model said are drawn into the first image, in the colours of their lines: the
    answer blue, what was said green if it is right, red if it is wrong, amber in between. Letters are those of DejaVu
    Sans; it lacks Chinese ones, for instance, which become empty boxes.

    Returns:
      uint8 [height, width, 3]; the size does not depend on what was said, so that pictures of one question lie upon
      each other.

    Raises:
      UserError: an image cannot be decoded.
    """
    said = RIGHT if example.score >= 1 else PARTLY if example.score > 0 else WRONG
    images = [_sized(decode_image(data, "an example")) for data in example.images[:MOST_IMAGES]]
    if images and (golds := parse_boxes(example.answer)):
        _outline(images[0], golds, GOLD)
        _outline(images[0], parse_boxes(example.prediction), said)
    across = sum(image.width + MARGIN for image in images) - MARGIN
    width = max(NARROWEST, across)
    texts = [(f"{example.task}: {example.question}", INK), (f"answer: {example.answer}", GOLD),
             (f"model: {example.prediction or '(nothing)'}", said)]  # fmt: skip
    lines = [(line, colour) for text, colour in texts for line in _wrapped(plain(text), width)]
    top = max((image.height for image in images), default=0) + 2 * MARGIN
    room = len(lines) + MOST_LINES - sum(colour == said for _, colour in lines)
    size = (width + 2 * MARGIN, top + room * LINE + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    x = MARGIN + (width - across) // 2
    for image in images:
        canvas.paste(image, (x, MARGIN))
        x += image.width + MARGIN
    pen = ImageDraw.Draw(canvas)
    for number, (line, colour) in enumerate(lines):
        pen.text((MARGIN, top + number * LINE), line, fill=colour, font=_font())
    return np.asarray(canvas)


def _sized(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest <= SIDE // 2:
        factor = SIDE // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = [max(1, round(side * SIDE / longest)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _outline(image: Image.Image, boxes: Sequence[Box], colour: tuple[int, int, int]) -> None:
    """Boxes however wild a prediction is: its corners are put in order and kept inside of the image."""
    pen = ImageDraw.Draw(image)
    for box in boxes[:MOST_BOXES]:
        x = sorted(min(max(value, 0), FULL) * (image.width - 1) / FULL for value in (box.x1, box.x2))
        y = sorted(min(max(value, 0), FULL) * (image.height - 1) / FULL for value in (box.y1, box.y2))
        pen.rectangle((x[0], y[0], x[1], y[1]), outline=colour, width=3)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, or inside of one that is longer than a line."""
    font, lines, current = _font(), [], ""
    for word in text.split(" "):
        while True:
            longer = f"{current} {word}" if current else word
            if font.getlength(longer) <= width:
                current = longer
                break
            if not current:
                fits = _fitting(word, width)
                lines.append(word[:fits])
                word = word[fits:]
            else:
                lines.append(current)
                current = ""
            if len(lines) > MOST_LINES:
                return [*lines[: MOST_LINES - 1], "..."]
    lines.append(current)
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "..."]


def _fitting(word: str, width: int) -> int:
    """How many letters of a word a line takes, at least one; found by halves, as words may be whole essays."""
    font = _font()
    return max(1, bisect.bisect(range(1, len(word) + 1), width, key=lambda letters: font.getlength(word[:letters])))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), TEXT)
