"""Sheets of pictures of the pocket data with what is asked about them, for people to look at."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence

from PIL import Image, ImageDraw

from vlm_jax.data.boxes import parse_boxes
from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.pocket.canvas import TILE, Grid, font
from vlm_jax.data.pocket.records import Record

ZOOM = 3
LAYOUT = ClosestAspect(tile_size=TILE, max_tiles=6)
"""The pocket model's tiling."""

_GREY, _BLUE, _RED = "#666666", "#1f4fa3", "#d1242f"


def contact_sheet(records: list[Record], width: int = 1800) -> Image.Image:
    """Each picture beside what the pocket model sees of it (without the thumbnail), the conversation underneath."""
    return _in_rows(map(_card, records), width)


def example_sheet(records: list[Record], width: int = 1200) -> Image.Image:
    """Each picture with marks where its tiles meet, its question, and the gold answer; a gold box is drawn.

    In 128 colours: this is for documents, whose files should be small.
    """
    sheet = _in_rows(sorted(map(_example, records), key=lambda card: card.height), width)
    return sheet.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def varied(make: Callable[[int], Record], count: int, most: int = 96) -> list[Record]:
    """`count` records of which kinds of question, then tile grids, then answers are as different as can be.

    Args:
      make: gives the record of a number.
      count: how many to choose.
      most: of so many records from number 0 on.
    """
    left = [(record, {"kind": record.kind, "grid": picture_and_grid(record)[1], "answer": _gold(record)})
            for record in map(make, range(most))]  # fmt: skip
    chosen: list[tuple[Record, dict]] = []
    while len(chosen) < min(count, most):
        seen = {key: [features[key] for _, features in chosen] for key in ("kind", "grid", "answer")}
        best = min(left, key=lambda item: [seen[key].count(item[1][key]) for key in seen])
        left.remove(best)
        chosen.append(best)
    return [record for record, _ in chosen]


def picture_and_grid(record: Record) -> tuple[Image.Image, Grid]:
    """The picture, and how many tiles across and down the pocket model cuts it into."""
    with Image.open(io.BytesIO(record.conversation.images[0])) as file:
        image = file.convert("RGB")
    return image, LAYOUT.grid(*image.size)


def _gold(record: Record) -> str:
    return record.conversation.turns[-1].text


def _in_rows(cards: Iterable[Image.Image], width: int) -> Image.Image:
    """Cards in rows, none wider than `width` pixels unless a single card is."""
    rows: list[list[Image.Image]] = [[]]
    for card in cards:
        if rows[-1] and sum(other.width for other in rows[-1]) + card.width > width:
            rows.append([])
        rows[-1].append(card)
    heights = [max(card.height for card in row) for row in rows]
    sheet = Image.new("RGB", (max(sum(card.width for card in row) for row in rows), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for card in row:
            sheet.paste(card, (left, top))
            left += card.width
        top += height
    return sheet


def _card(record: Record) -> Image.Image:
    """One picture as drawn and as seen, and the conversation below."""
    image, (columns, rows) = picture_and_grid(record)
    seen = image.resize((TILE * columns, TILE * rows), Image.Resampling.BICUBIC)
    views = [_enlarged(view) for view in (image, seen)]
    width = sum(view.width for view in views) + 24
    lines = [(f"{image.width}x{image.height}, {columns}x{rows} tiles", "black")]
    for turn in record.conversation.turns:
        mark = "> " if turn.role == "assistant" else ""
        for line in turn.text.removeprefix(f"{IMAGE}\n").splitlines():
            lines += [(part, "black") for part in textwrap.wrap(mark + line, max(30, width // 7))]
    return _with_text(views, lines, width, 8)


def _example(record: Record) -> Image.Image:
    """One picture with a mark at every border of tiles, and its one question; what it was drawn for stands first."""
    image, (columns, rows) = picture_and_grid(record)
    view = _enlarged(image)
    draw = ImageDraw.Draw(view)
    for box in parse_boxes(_gold(record))[:1]:
        corners = [round(side * edge / 1000) for side, edge in zip(box, (view.width, view.height) * 2, strict=True)]
        draw.rectangle(corners, outline=_RED, width=2)
    framed = Image.new("RGB", (view.width + 16, view.height + 16), "white")
    framed.paste(view, (8, 8))
    draw = ImageDraw.Draw(framed)
    draw.rectangle((7, 7, view.width + 8, view.height + 8), outline="#bbbbbb")
    for x in (8 + round(view.width * k / columns) for k in range(columns + 1)):
        draw.line([(x, 0), (x, 6)], _RED, 2)
        draw.line([(x, view.height + 9), (x, view.height + 15)], _RED, 2)
    for y in (8 + round(view.height * k / rows) for k in range(rows + 1)):
        draw.line([(0, y), (6, y)], _RED, 2)
        draw.line([(view.width + 9, y), (view.width + 15, y)], _RED, 2)
    width = max(framed.width + 24, 300)
    letters = width // 9
    question = record.conversation.turns[0].text.removeprefix(f"{IMAGE}\n")
    tiles = f"{columns} x {rows} tiles" if columns * rows > 1 else "1 tile"
    lines = [(f"{record.kind}: {image.width} x {image.height} pixels, {tiles}", _GREY)]
    lines += [(line, "black") for line in textwrap.wrap(question, letters)]
    lines += [(line, _BLUE) for line in textwrap.wrap(_gold(record), letters)]
    return _with_text([framed], lines, width, 10)


def _enlarged(view: Image.Image) -> Image.Image:
    return view.resize((ZOOM * view.width, ZOOM * view.height), Image.Resampling.NEAREST)


def _with_text(views: Sequence[Image.Image], lines: list[tuple[str, str]], width: int, cap: int) -> Image.Image:
    """Views side by side, and lines of text in their colours below, with capitals `cap` pixels high."""
    face, pitch = font("DejaVuSans", cap), round(1.8 * cap)
    height = max(view.height for view in views)
    card = Image.new("RGB", (width, height + pitch * len(lines) + 2 * cap + 4), "white")
    left = 4
    for view in views:
        card.paste(view, (left, 4))
        left += view.width + 8
    for number, (line, color) in enumerate(lines):
        ImageDraw.Draw(card).text((8, height + cap + pitch * number), line, color, face)
    return card
