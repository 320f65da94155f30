"""From words with places to text in reading order: words to lines, lines to paragraphs, by geometry alone.

1. *Upright.* The page's angle is the median of the words' own angles. Where they have none, it is the one of -20,
   -19.5, ... 20 degrees at which the most pairs of words stand at one height, if there are at least eight words, and a
   fifth more such pairs than at 0 degrees. Everything is turned back by it.
2. *Lines.* From left to right, a word joins the line whose last word is nearest, if both overlap in height by half of
   the smaller one, the gap between them is at most 1.5 times the smaller height, and neither is more than three times
   as high as the other. A word without letters and digits (a dash, a full stop) has its neighbour's height here.
3. *Paragraphs.* From top to bottom, a line joins the paragraph whose last line is nearest, if the gap between them is
   at most the height of the lower one, they overlap in width by half of the narrower one, and neither is more than 1.8
   times as high as the other.
4. *Order.* One paragraph is read before another if it is above it and their widths overlap, or if it is on its left and
   nothing that stands between them in height overlaps both in width: so columns are read one by one, and what runs over
   several columns parts them (Breuel, "High Performance Document Layout Analysis", 2003, section on reading order).

All limits are shares of heights, so that the scale of a picture does not matter.

LLaVAR (arXiv 2306.17107, section 3.1) merges words into paragraphs by their places, and publishes no rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlm_jax.data.recipes.ocr_words import Word

_ANGLES = np.radians(np.arange(-20, 20.5, 0.5))  # that are tried, where words say none
_FEWEST, _MOST = 8, 400  # words whose heights are compared; of more, as many evenly spread
_SAME_HEIGHT = 0.3  # share of the words' usual height within which two stand at one height
_MORE_PAIRS = 1.2
_WORD_GAP, _WORD_OVERLAP, _WORD_RATIO = 1.5, 0.5, 3.0
_LINE_GAP, _LINE_OVERLAP, _LINE_RATIO = 1.0, 0.5, 1.8


class Block(NamedTuple):
    """A word, line or paragraph on the upright page.

    Attributes:
      left, top, right, bottom: in pixels.
      height: of its letters: of a line that of its highest word.
      text: its words.
    """

    left: float
    top: float
    right: float
    bottom: float
    height: float
    text: str


def transcript(words: Sequence[Word]) -> str:
    """The text of a picture, a line for each paragraph; '' without words.

    The order of `words` does not matter, unless two of them are in the same place.
    """
    return "\n".join(paragraphs(words))


def paragraphs(words: Sequence[Word]) -> list[str]:
    """The paragraphs of a picture in reading order, their lines joined by spaces."""
    return [block.text for block in _in_order(_merged_lines(_lines(upright(words, page_angle(words)))))]


def page_angle(words: Sequence[Word]) -> float:
    """By how much a page is turned, in radians, positive clockwise; see step 1 above."""
    known = [word.angle for word in words if word.angle is not None]
    if known or len(words) < _FEWEST:
        return float(np.median(known)) if known else 0.0
    some = sorted(words)[:: len(words) // _MOST + 1]
    return _straightest(some, _straightest(some, 0.0))


def _straightest(words: Sequence[Word], guess: float) -> float:
    """The angle at which the most pairs stand at one height, in radians; `guess` says how high the words are."""
    x, y = np.array([word[1:3] for word in words], float).T
    near = _SAME_HEIGHT * float(np.median([block.height for block in upright(words, guess)]))
    turned = y * np.cos(_ANGLES)[:, None] - x * np.sin(_ANGLES)[:, None]
    pairs = np.array([np.count_nonzero(np.abs(at[:, None] - at) < near) - len(at) for at in turned])
    best = np.flatnonzero(pairs == pairs.max())
    return float(_ANGLES[best[len(best) // 2]]) if pairs.max() > _MORE_PAIRS * pairs[len(pairs) // 2] else 0.0


def upright(words: Sequence[Word], angle: float) -> list[Block]:
    """Words on a page that is turned back by `angle`, in radians.

    The upright box around a word of width w and height h that is turned by a is w cos a + h sin a wide and
    w sin a + h cos a high, from which w and h follow.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    blocks = []
    for text, x, y, width, height, own in words:
        if own is None and angle:
            across = (width * cos - height * abs(sin)) / math.cos(2 * angle)
            down = (height * cos - width * abs(sin)) / math.cos(2 * angle)
            # Boxes are never exact; where too little would be left, the box was hardly turned.
            width, height = (across, down) if min(across, down) > 0.2 * height else (width, height)
        x, y = x * cos + y * sin, y * cos - x * sin
        blocks.append(Block(x - width / 2, y - height / 2, x + width / 2, y + height / 2, height, text))
    return blocks


def _lines(words: Sequence[Block]) -> list[Block]:
    lines: list[list[Block]] = []
    for word in sorted(words):
        gaps = [(gap, number) for number, line in enumerate(lines) if (gap := _word_gap(line[-1], word)) is not None]
        if gaps:
            lines[min(gaps)[1]].append(word)
        else:
            lines.append([word])
    return [_joined(line, " ") for line in lines]


def _word_gap(last: Block, word: Block) -> float | None:
    """The gap between a line's last word and one that may follow; None where it may not."""
    low, high = sorted((last.height, word.height))
    if not all(any(map(str.isalnum, block.text)) for block in (last, word)):
        low = high
    overlap = min(last.bottom, word.bottom) - max(last.top, word.top)
    gap = word.left - last.right
    fits = overlap >= _WORD_OVERLAP * min(last.height, word.height) and -low <= gap <= _WORD_GAP * low
    return abs(gap) if fits and high <= _WORD_RATIO * low else None


def _merged_lines(lines: Sequence[Block]) -> list[Block]:
    found: list[list[Block]] = []
    for line in sorted(lines, key=lambda line: (line.top + line.bottom, line.left)):
        gaps = [(gap, number) for number, part in enumerate(found) if (gap := _line_gap(part[-1], line)) is not None]
        if gaps:
            found[min(gaps)[1]].append(line)
        else:
            found.append([line])
    return [_joined(part, " ") for part in found]


def _line_gap(last: Block, line: Block) -> float | None:
    """The gap between a paragraph's last line and one that may follow; None where it may not."""
    low, high = sorted((last.height, line.height))
    overlap = min(last.right, line.right) - max(last.left, line.left)
    narrower = min(last.right - last.left, line.right - line.left)
    gap = line.top - last.bottom
    fits = -0.5 * low <= gap <= _LINE_GAP * line.height and overlap >= _LINE_OVERLAP * narrower
    return abs(gap) if fits and high <= _LINE_RATIO * low else None


def _joined(blocks: Sequence[Block], between: str) -> Block:
    left, top, right, bottom, height, _ = zip(*blocks, strict=True)
    text = between.join(block.text for block in blocks)
    return Block(min(left), min(top), max(right), max(bottom), max(height), text)


def _in_order(blocks: Sequence[Block]) -> list[Block]:
    """Blocks in reading order: of those that none that is left must precede, always the highest, then the leftmost."""
    blocks = sorted(blocks, key=lambda block: (block.top, block.left, block.text))
    before = _precedes(blocks)
    left = list(range(len(blocks)))
    order = []
    while left:
        first = next((number for number in left if not before[left, number].any()), left[0])
        left.remove(first)
        order.append(blocks[first])
    return order


def _precedes(blocks: Sequence[Block]) -> np.ndarray:
    """Bool [n, n]: whether block i must be read before block j, by step 4 above."""
    if not blocks:
        return np.zeros((0, 0), bool)
    left, top, right, bottom = np.array([block[:4] for block in blocks]).T
    middle = (top + bottom) / 2
    shares = (np.minimum(right, right[:, None]) > np.maximum(left, left[:, None])) & ~np.eye(len(blocks), dtype=bool)
    above = shares & (middle[:, None] < middle)
    beside = right[:, None] <= left
    for number in range(len(blocks)):  # what it parts is not read column by column
        between = (np.minimum(middle, middle[:, None]) < middle[number]) & (
            middle[number] < np.maximum(middle, middle[:, None])
        )
        beside &= ~(between & shares[number][:, None] & shares[number])
    return above | beside
