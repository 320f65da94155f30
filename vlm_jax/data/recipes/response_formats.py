"""How a question says what form its answer should have: the prompts of LLaVA-1.5 as data, and its boxes.

Without them short answers of data sets and long ones of chats spoil each other (arXiv 2310.03744, section 3.2 and
table 7). Wording and places are those of the released mixture, `llava_v1_5_mix665k.json`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

from vlm_jax.errors import UserError


class ResponseFormat(NamedTuple):
    """What is said about the form of an answer.

    Attributes:
      prompt: the line behind a question.
      once: of questions in one conversation only the first has it.
    """

    prompt: str
    once: bool = False


SHORT_ANSWER = ResponseFormat("Answer the question using a single word or phrase.", once=True)
"""VQAv2, GQA, OKVQA, OCR-VQA."""

OPTION_LETTER = ResponseFormat("Answer with the option's letter from the given choices directly.")
"""A-OKVQA; the options stand before it, so every question has its own."""

CAPTION = "Provide a one-sentence caption for the provided image."
"""The question of TextCaps."""

_WORDS_OF_IMAGE = "Reference OCR token: {}"
_REGION = "Please provide a short description for this region: {}."
_PHRASE = "Please provide the bounding box coordinate of the region this sentence describes: {}."

Box = tuple[float, float, float, float]


def caption_question(words: Sequence[str] = ()) -> str:
    """TextCaps' question, with the words that an OCR program read in the picture, where it is given any."""
    return "\n".join([CAPTION, *([_WORDS_OF_IMAGE.format(", ".join(words))] if words else [])])


def region_question(box: str) -> str:
    """Asks what is in a box (RefCOCO and Visual Genome, one of the two directions)."""
    return _REGION.format(box)


def phrase_question(phrase: str) -> str:
    """Asks for the box of what a phrase describes (the other direction)."""
    return _PHRASE.format(phrase.strip().rstrip("."))


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with a line for each option behind it: `A. one`, `B. two`, ...

    Raises:
      UserError: fewer than two options, or more than letters.
    """
    if not 2 <= len(options) <= len(string.ascii_uppercase):
        raise UserError(f"options: a question has 2 to {len(string.ascii_uppercase)}, got {len(options)}")
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines])


def box_text(box: Box, width: int, height: int, *, square: bool = False) -> str:
    """A box as LLaVA-1.5 writes it: `[x1, y1, x2, y2]`, shares of the sides with at most two decimals.

    Args:
      box: left, top, right and bottom in pixels.
      width, height: of the picture.
      square: shares of the picture padded to a square on both sides, as a model sees it that pads.

    Raises:
      UserError: the box is not one, or reaches out of the picture.
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height and width > 0 and height > 0):
        raise UserError(f"box: {list(box)} is no box in a picture of {width} x {height} pixels")
    left = top = 0
    if square:
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        width = height = side
    shares = ((x1 + left) / width, (y1 + top) / height, (x2 + left) / width, (y2 + top) / height)
    return f"[{', '.join(str(round(share, 2)) for share in shares)}]"
