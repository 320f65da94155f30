"""Task `document`: receipts, whose total is the sum of their items, and forms of labelled fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from vlm_jax.data.pocket.canvas import (
    FONTS,
    Grid,
    blank,
    canvas_size,
    choose,
    font,
    paper_and_ink,
    pick,
    pixels_per_model_pixel,
)
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import READ, Box, Question, Scene, split_of

KINDS = ("field", "price", "field", "total")
HARD_KINDS = ("price", "field", "price", "field", "total")
"""Where what is hard comes more often (`Preset.hard`)."""

LAYOUTS = {(1, 1): 0.74, (2, 1): 0.12, (1, 2): 0.06, (2, 2): 0.05, (3, 2): 0.03}
"""Tile grid → share of the documents."""

LINES = {(1, 1): (3, 3), (2, 1): (2, 3), (1, 2): (3, 5), (2, 2): (4, 5), (3, 2): (4, 5)}
"""Tile grid → fewest and most lines, a receipt's total included."""

SMALLEST_CAPITAL = 8.0
"""A capital letter is at least this high, in pixels of the tiles that the model sees."""

CHOICES = {
    "Day": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    "Size": ("S", "M", "L", "XL"),
    "Status": ("paid", "open", "due", "void"),
    "Class": ("A", "B", "C"),
}
"""Fields that are ticked rather than written, and what they can say."""

TEMPLATES = {("Day", "Size", "Status"): 0.7, ("Class", "Age", "Status"): 0.15, ("Name", "Day", "Room"): 0.15}
"""Forms as they are printed, these fields each always in its line → share of the printed forms."""

PRINTED_FORMS = 0.85
"""Share of these among the forms of three lines; the others have any fields in any order."""

GOODS = ("Tea", "Milk", "Rice", "Soup", "Cake", "Fish", "Eggs", "Beer")
"""What most receipts are about; the others list words of the prose."""

GOODS_RECEIPTS = 0.8
"""Share of these among the receipts."""

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

HEADINGS = {"receipt": ("Receipt", "Bill", "Invoice"), "form": ("Form", "Record", "Entry")}


@dataclasses.dataclass(frozen=True)
class Document:
    """What a document says: `kind` is receipt or form; lines of label and value; a heading, or none."""

    kind: str
    lines: tuple[tuple[str, str], ...]
    heading: str = ""

    @property
    def content(self) -> str:
        """Fields and values as one text, which decides the split (a heading does not make a document new)."""
        return self.kind + ": " + ", ".join(f"{label} {value}" for label, value in self.lines)


def draw_document(
    rng: np.random.Generator, material: Material, ask: str, layouts: Mapping[Grid, float] | None = None
) -> Scene:
    """A receipt (`price` of an item, `total`) or a form (`field`)."""
    kind = "form" if ask == "field" else "receipt"
    document, image, _ = make_document(rng, material, kind, layouts)
    return Scene(
        image=image,
        questions=_questions(rng, document, ask),
        transcription=Question("transcription", READ, transcribe(document)),
        provenance={"content": document.content},
    )


def make_document(
    rng: np.random.Generator, material: Material, kind: str, layouts: Mapping[Grid, float] | None = None
) -> tuple[Document, Image.Image, dict[str, Box]]:
    """Writes and draws a document that belongs to the split of `material`.

    Returns:
      The document, its picture, and the box of every line in pixels by the line's label.
    """
    while True:
        grid = pick(rng, layouts or LAYOUTS)
        document = _receipt(rng, material.words, grid) if kind == "receipt" else _form(rng, material.words, grid)
        if split_of(document.content) != material.split:
            continue
        drawn = _draw(rng, document, grid)
        if drawn is not None:
            return document, *drawn


def transcribe(document: Document) -> str:
    """The text as printed, a line a line."""
    heading = [document.heading] if document.heading else []
    return "\n".join(heading + [f"{label} {value}" for label, value in document.lines])


def _receipt(rng: np.random.Generator, words: tuple[str, ...], grid: tuple[int, int]) -> Document:
    """Items with whole prices, and their total in the last line."""
    fewest, most = LINES[grid]
    items = max(2, int(rng.integers(fewest, most + 1)) - 1)
    words = GOODS if rng.random() < GOODS_RECEIPTS else words
    names = _distinct_words(rng, words, items, longest=5 if grid[0] == 1 else 6)
    prices = [int(price) for price in rng.integers(1, 10, items)]
    lines = [(name, str(price)) for name, price in zip(names, prices, strict=True)]
    return Document("receipt", (*lines, ("Total", str(sum(prices)))), _heading(rng, "receipt", grid))


def _form(rng: np.random.Generator, words: tuple[str, ...], grid: tuple[int, int]) -> Document:
    """The fields of one of `TEMPLATES`, in their order; or two to five of all fields in any order."""
    fewest, most = LINES[grid]
    day = int(rng.integers(1, 29))
    fields = {
        "Name": choose(rng, [word for word in words if len(word) <= (4 if grid[0] == 1 else 6)]),
        "Code": "ABCDEFHKLMNPRSTX"[int(rng.integers(16))] + str(rng.integers(10, 100)),
        "Age": str(rng.integers(18, 90)),
        "Room": str(rng.integers(1, 100)),
        **{label: choose(rng, values) for label, values in CHOICES.items()},
        "Date": f"{day} {choose(rng, MONTHS)}",
        "Topic": choose(rng, words),
    }
    if fewest <= 3 <= most and rng.random() < PRINTED_FORMS:
        names = pick(rng, TEMPLATES)
    else:
        narrow = ("Name", "Code", "Age", "Room", *CHOICES)
        any_order = rng.permutation(narrow if grid[0] == 1 else list(fields))
        names = any_order[: int(rng.integers(fewest, most + 1))]
    return Document("form", tuple((str(name), fields[name]) for name in names), _heading(rng, "form", grid))


def _distinct_words(rng: np.random.Generator, words: tuple[str, ...], count: int, longest: int) -> list[str]:
    short = [word for word in words if len(word) <= longest]
    return [short[k] for k in rng.permutation(len(short))[:count]]


def _heading(rng: np.random.Generator, kind: str, grid: tuple[int, int]) -> str:
    """Half of the documents of two and more rows of tiles have one."""
    return choose(rng, HEADINGS[kind]) if grid[1] > 1 and rng.random() < 0.5 else ""


def _questions(rng: np.random.Generator, document: Document, ask: str) -> tuple[Question, ...]:
    """One question a line in random order, one of kind `ask` first."""
    if document.kind == "form":
        asked = [Question("field", f"What is the {label.lower()}?", value) for label, value in document.lines]
    else:
        asked = [Question("price", f"What is the price of {label}?", value) for label, value in document.lines[:-1]]
        asked.append(Question("total", "What is the total?", document.lines[-1][1]))
    order = [asked[k] for k in rng.permutation(len(asked))]
    return tuple(sorted(order, key=lambda question: question.kind != ask))


def _draw(
    rng: np.random.Generator, document: Document, grid: tuple[int, int]
) -> tuple[Image.Image, dict[str, Box]] | None:
    """The picture and the boxes of the lines; None where no font fits at a legible size."""
    size = canvas_size(rng, grid)
    unit = pixels_per_model_pixel(size, grid)
    margin = 2.5 * unit
    rows = len(document.lines) + bool(document.heading)
    pitch = (size[1] - 2 * margin) / rows
    gap = 4 * unit
    separator = ":" if document.kind == "form" and grid[0] > 1 and rng.random() < 0.5 else ""
    texts = [(label + separator, value) for label, value in document.lines]
    for name in rng.permutation(FONTS):
        for cap in range(int(min(0.58 * pitch, 13 * unit)), int(np.ceil(SMALLEST_CAPITAL * unit)) - 1, -1):
            face = font(str(name), cap)
            width = max(face.getlength(left) + gap + face.getlength(right) for left, right in texts)
            if width <= size[0] - 2 * margin:
                heading = (document.heading,) if document.heading else ()
                return _print(rng, size, face, pitch, margin, heading, texts, width)
    return None


def _print(rng, size, face, pitch, margin, heading, texts, width) -> tuple[Image.Image, dict[str, Box]]:
    """Prints the lines on a sheet: labels to the left, values in a column of their own or right after the label."""
    paper, ink = paper_and_ink(rng, dark=0.15)
    sheet = blank(rng, size, paper)
    draw = ImageDraw.Draw(sheet)
    spare = size[0] - 2 * margin - width
    left = margin + rng.uniform(0, 0.5) * spare
    right = size[0] - margin - rng.uniform(0, 0.5) * spare
    top = margin + pitch / 2
    if heading:
        draw.text((size[0] / 2, top), heading[0], ink, face, anchor="mm")
    boxes: dict[str, Box] = {}
    for row, (label, value) in enumerate(texts, start=len(heading)):
        middle = top + row * pitch
        draw.text((left, middle), label, ink, face, anchor="lm")
        draw.text((right, middle), value, ink, face, anchor="rm")
        boxes[label.rstrip(":")] = (left, middle - pitch / 2, right, middle + pitch / 2)
    if texts[-1][0] == "Total" and rng.random() < 0.5:
        line = top + (len(heading) + len(texts) - 1.5) * pitch
        draw.line([(left, line), (right, line)], ink)
    return sheet, boxes
