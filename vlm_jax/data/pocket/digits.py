"""Tasks `digits` and `count`: grids of real handwritten digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_jax.data.pocket.canvas import blank, canvas_size, choose, paper_and_ink, pick
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import READ, Question, Scene

KINDS = ("cell",)
COUNT_KINDS = ("number", "count", "number", "sum")
HARD_COUNT_KINDS = ("count", "sum", "number", "count", "sum")
"""Where what is hard comes more often (`Preset.hard`)."""

LAYOUTS = {
    (3, 3, (1, 1)): 0.80,
    (2, 2, (1, 1)): 0.04,
    (2, 4, (2, 1)): 0.05,
    (4, 2, (1, 2)): 0.04,
    (4, 4, (2, 2)): 0.03,
    (2, 3, (3, 2)): 0.02,
    (3, 2, (2, 3)): 0.01,
    (2, 5, (3, 1)): 0.01,
}
"""(rows, columns of digits, tile grid) → share of the `digits` pictures."""

ONE_LAYOUT = {(3, 3, (1, 1)): 1.0}
"""What comes before them in training: one layout, so that reading begins before there is much to tell apart."""

COUNT_LAYOUTS = {
    (3, 3, (1, 1)): 0.30,
    (2, 2, (1, 1)): 0.14,
    (2, 3, (1, 1)): 0.14,
    (3, 2, (1, 1)): 0.14,
    (2, 4, (2, 1)): 0.12,
    (4, 2, (1, 2)): 0.10,
    (2, 2, (2, 2)): 0.06,
}

ONE_TILE_COUNTS = {key: share for key, share in COUNT_LAYOUTS.items() if key[2] == (1, 1)}
"""Those of them in one tile."""

EMPTY = -1
"""In place of the number of a digit image: nothing is drawn."""

MOST = 4
"""Counts asked for in validation and test run from 0 to this, equally often where the grid is large enough."""


def draw_digits(
    rng: np.random.Generator, material: Material, ask: str = "cell", layouts: Mapping[Any, float] = LAYOUTS
) -> Scene:
    """A grid of digits; `cell` asks for the one at a row and column, `search` rather for the row and column of one."""
    rows, columns, tiles = pick(rng, layouts)
    picks = rng.integers(len(material.labels), size=(rows, columns))
    labels = material.labels[picks]
    cells, lines = _cell_questions(rng, labels), _line_questions(rng, labels)
    questions = cells[:1] + _search_questions(rng, labels) if ask == "search" else cells + lines
    return _scene(rng, material, picks, tiles, questions)


def draw_count(
    rng: np.random.Generator, material: Material, ask: str, layouts: Mapping[Any, float] = COUNT_LAYOUTS
) -> Scene:
    """A grid of digits: their `number` where some places are empty, the `count` of one of them, the `sum` of a line.

    A line of which the sum is asked is a row or a column of two digits.
    """
    layouts = {key: share for key, share in layouts.items() if ask != "sum" or 2 in key[:2]}
    rows, columns, tiles = pick(rng, layouts)
    if ask == "number":
        return _scattered(rng, material, (rows, columns), tiles)
    cells = rows * columns
    digit, times = int(rng.integers(10)), int(rng.integers(min(MOST, cells - 1) + 1))
    others = rng.choice(np.flatnonzero(material.labels != digit), cells - times)
    own = rng.choice(np.flatnonzero(material.labels == digit), times)
    picks = rng.permutation(np.concatenate([own, others])).reshape(rows, columns)
    labels = material.labels[picks]
    counts = [_count_question(labels, digit)]
    counts += [_count_question(labels, int(d)) for d in rng.permutation(np.unique(labels)) if d != digit][:2]
    sums = _sum_questions(rng, labels)
    questions = counts + sums if ask == "count" else sums + counts
    return _scene(rng, material, picks, tiles, questions + _line_questions(rng, labels)[:1])


def _scattered(rng: np.random.Generator, material: Material, shape: tuple[int, int], tiles: tuple[int, int]) -> Scene:
    """Digits in some of the places of a grid, from one to all equally often; no question asks for a place."""
    places = shape[0] * shape[1]
    number = int(rng.integers(1, places + 1))
    picks = np.full(places, EMPTY)
    picks[rng.permutation(places)[:number]] = rng.integers(len(material.labels), size=number)
    labels = material.labels[picks[picks != EMPTY]]
    questions = [
        Question("number", "How many digits are there?", str(number)),
        _count_question(labels, int(choose(rng, labels))),
    ]
    return _scene(rng, material, picks.reshape(shape), tiles, questions)


def transcribe(rows: Iterable[Iterable[int]]) -> str:
    """All digits, a row a line, without spaces: every digit is one token of a tokenizer that splits digits."""
    lines = ["".join(str(digit) for digit in row) for row in rows]
    return "\n".join(line for line in lines if line)


def ink_mask(rng: np.random.Generator, digit: np.ndarray, side: int) -> Image.Image:
    """One 8×8 digit enlarged smoothly to `side` pixels and turned a little, as a mask of how much ink there is."""
    # Two empty pixels around, so that neither the filter nor the turn cuts a stroke.
    padded = Image.new("L", (digit.shape[1] + 4, digit.shape[0] + 4))
    padded.paste(Image.fromarray(digit), (2, 2))
    large = padded.resize((round(side * 1.5), round(side * 1.5)), Image.Resampling.BICUBIC)
    turned = large.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR)
    margin = (turned.width - side) // 2
    return turned.crop((margin, margin, margin + side, margin + side)).point(_DARKER)


_DARKER = [min(255, int(level * 1.25)) for level in range(256)]
"""Level of ink -> the level drawn: what the filter thinned is filled up."""


def draw_grid(rng: np.random.Generator, material: Material, picks: np.ndarray, tiles: tuple[int, int]) -> Image.Image:
    """Draws the digits with numbers `picks` [rows, columns] of `material` (or nothing, `EMPTY`) onto one sheet."""
    size = canvas_size(rng, tiles)
    paper, ink = paper_and_ink(rng, dark=0.15)
    sheet = blank(rng, size, paper)
    rows, columns = picks.shape
    left, top = rng.uniform(0, 0.05, 2) * size
    width, height = np.asarray(size) * rng.uniform(0.95, 1.0) - (left, top)
    cell_width, cell_height = width / columns, height / rows
    if rng.random() < 0.3:
        _rule(sheet, (left, top, cell_width, cell_height), picks.shape, paper, ink)
    for row in range(rows):
        for column in range(columns):
            if picks[row, column] == EMPTY:
                continue
            side = round(min(cell_width, cell_height) * rng.uniform(0.84, 1.0))
            slack = np.asarray([cell_width - side, cell_height - side])
            # Away from the middle of a wide cell by at most a sixth of the room, so that rows and columns stay clear.
            shift = slack * (0.5 + rng.uniform(-1, 1, 2) / 6)
            place = (round(left + column * cell_width + shift[0]), round(top + row * cell_height + shift[1]))
            sheet.paste(ink, place, ink_mask(rng, material.digits[picks[row, column]], side))
    return sheet


def _rule(sheet: Image.Image, cell: tuple, shape: tuple, paper: tuple, ink: tuple) -> None:
    """Faint lines between the cells."""
    left, top, width, height = cell
    faint = tuple(round(0.75 * p + 0.25 * i) for p, i in zip(paper, ink, strict=True))
    draw = ImageDraw.Draw(sheet)
    rows, columns = shape
    for row in range(1, rows):
        draw.line([(left, top + row * height), (left + columns * width, top + row * height)], faint)
    for column in range(1, columns):
        draw.line([(left + column * width, top), (left + column * width, top + rows * height)], faint)


def _scene(
    rng: np.random.Generator, material: Material, picks: np.ndarray, tiles: tuple[int, int], questions: list[Question]
) -> Scene:
    drawn = picks[picks != EMPTY]
    return Scene(
        image=draw_grid(rng, material, picks, tiles),
        questions=tuple(questions),
        transcription=Question("transcription", READ, transcribe(material.labels[row[row != EMPTY]] for row in picks)),
        provenance={"digits": sorted({int(index) for index in material.indices[drawn]})},
    )


def _cell_questions(rng: np.random.Generator, labels: np.ndarray) -> list[Question]:
    """Four cells in random order."""
    rows, columns = labels.shape
    order = rng.permutation(rows * columns)[:4]
    return [
        Question(
            "cell",
            f"Which digit is in row {place // columns + 1}, column {place % columns + 1}?",
            str(labels[place // columns, place % columns]),
        )
        for place in order
    ]


def _line_questions(rng: np.random.Generator, labels: np.ndarray) -> list[Question]:
    """One row and one column to read; in training only."""
    row, column = int(rng.integers(labels.shape[0])), int(rng.integers(labels.shape[1]))
    return [
        Question("row", f"Read row {row + 1}.", transcribe(labels[row : row + 1])),
        Question("column", f"Read column {column + 1}.", transcribe(labels[:, column][None])),
    ]


def _search_questions(rng: np.random.Generator, labels: np.ndarray) -> list[Question]:
    """Where a digit is, step by step, and sums of two neighbours; in training only.

    Counting, pointing and adding up a line are made of these. A small model that can read a given place finds the place
    of a given digit only when it is led there: is it here, which one of this row is it, where of all is it.
    """
    rows, columns = labels.shape
    row, column = int(rng.integers(rows)), int(rng.integers(columns))
    digit = int(labels[row, column]) if rng.random() < 0.5 else int(rng.integers(10))
    is_it = "yes" if labels[row, column] == digit else "no"
    questions = [Question("is", f"Is the digit in row {row + 1}, column {column + 1} a {digit}?", is_it)]
    for line in rng.permutation(rows).tolist():
        for digit, place in _once(rng, labels[line : line + 1])[:1]:
            questions.append(Question("which", f"In row {line + 1}, which column has the digit {digit}?", place[1]))
        if len(questions) > 1:
            break
    for digit, place in _once(rng, labels)[:1]:
        questions.append(Question("where", f"Where is the digit {digit}?", f"row {place[0]}, column {place[1]}"))
    for _ in range(2):
        row, column = int(rng.integers(rows)), int(rng.integers(columns - 1))
        text = f"What is the sum of row {row + 1}, columns {column + 1} and {column + 2}?"
        questions.append(Question("pair", text, str(labels[row, column : column + 2].sum())))
    return questions


def _once(rng: np.random.Generator, labels: np.ndarray) -> list[tuple[int, tuple[str, str]]]:
    """Digits that are there once, in random order, with row and column counted from 1."""
    values, counts = np.unique(labels, return_counts=True)
    places = {int(value): np.argwhere(labels == value)[0] + 1 for value in values[counts == 1]}
    return [(digit, (str(places[digit][0]), str(places[digit][1]))) for digit in rng.permutation(list(places)).tolist()]


def _count_question(labels: np.ndarray, digit: int) -> Question:
    return Question("count", f"How many times does the digit {digit} appear?", str(int((labels == digit).sum())))


def _sum_questions(rng: np.random.Generator, labels: np.ndarray) -> list[Question]:
    """Sums of rows, or columns, of exactly two digits; at most two questions."""
    lines = [("row", k + 1, line) for k, line in enumerate(labels) if len(line) == 2]
    lines += [("column", k + 1, line) for k, line in enumerate(labels.T) if len(line) == 2]
    order = rng.permutation(len(lines))[:2]
    return [
        Question("sum", f"What is the sum of {lines[k][0]} {lines[k][1]}?", str(int(lines[k][2].sum()))) for k in order
    ]
