"""Pages of words whose boxes are known, laid out in lines by hand."""

import math
import random

from vlm_jax.data.recipes.ocr_words import word_of_box

ADVANCE = 0.55  # widths of letters in heights, as in common type


def line(text, left, base, height):
    """The words of a line as tight boxes: what has no high or hanging letter is lower, as an OCR gives it."""
    words = []
    for word in text.split():
        top = base - height * (1.0 if any(c.isupper() or c.isdigit() or c in "bdfhklt" for c in word) else 0.7)
        bottom = base + height * (0.28 if any(c in "gjpqy" for c in word) else 0.0)
        right = left + ADVANCE * height * len(word)
        if not any(map(str.isalnum, word)):
            top, bottom = base - 0.45 * height, base - 0.35 * height
        words.append((word, (left, top, right, bottom)))
        left = right + 0.4 * height
    return words


def block(lines, left, top, height, spacing=1.6):
    """Lines below one another."""
    boxes = []
    for number, text in enumerate(lines):
        boxes += line(text, left, top + height * (1 + spacing * number), height)
    return boxes


def page(boxes, degrees=0.0, seed=0):
    """Words in any order, each in the upright box around it after the page was turned clockwise."""
    angle = math.radians(degrees)
    found = []
    for text, (x1, y1, x2, y2) in boxes:
        corners = [
            (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
            for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
        ]
        xs, ys = zip(*corners, strict=True)
        found.append(word_of_box(text, (min(xs), min(ys), max(xs), max(ys))))
    random.Random(seed).shuffle(found)
    return found
