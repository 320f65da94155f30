"""Draws contact sheets of the pocket data, one PNG a task: `python -m vlm_jax.data.pocket --out=DIR`.

Every picture stands beside what the pocket model sees of it (resized to its tile grid; the thumbnail is left out), both
three times enlarged, with the conversation underneath.
"""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from vlm_jax import cli
from vlm_jax.data.pocket.canvas import TILE, font
from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.records import Record, make_record
from vlm_jax.data.pocket.scene import SPLITS, TASKS
from vlm_jax.data.tiling import ClosestAspect, choose_grid

ZOOM = 3
LAYOUT = ClosestAspect(tile_size=TILE, max_tiles=6)
"""The pocket model's tiling."""


def main(arguments: list[str]) -> None:
    """Writes `DIR/<task>.png` for each task."""
    parser = cli.ArgumentParser(prog="python -m vlm_jax.data.pocket", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24, help="pictures on a sheet")
    flags = parser.parse_args(arguments)
    material = load_material(flags.seed)[flags.split]
    flags.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        records = [make_record(flags.seed, flags.split, task, number, material) for number in range(flags.pictures)]
        path = flags.out / f"{task}.png"
        contact_sheet(records).save(path)
        sys.stdout.write(f"{path}\n")


def contact_sheet(records: list[Record], width: int = 1800) -> Image.Image:
    """Cards of all records in rows, none wider than `width` pixels unless a single card is."""
    rows: list[list[Image.Image]] = [[]]
    for card in map(_card, records):
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
    with Image.open(io.BytesIO(record.conversation.images[0])) as file:
        image = file.convert("RGB")
    columns, rows = choose_grid(*image.size, LAYOUT)
    seen = image.resize((TILE * columns, TILE * rows), Image.Resampling.BICUBIC)
    views = [view.resize((ZOOM * view.width, ZOOM * view.height), Image.Resampling.NEAREST) for view in (image, seen)]
    face = font("DejaVuSans", 8)
    width = sum(view.width for view in views) + 24
    lines = [f"{image.width}x{image.height}, {columns}x{rows} tiles"]
    for turn in record.conversation.turns:
        mark = "> " if turn.role == "assistant" else ""
        for line in turn.text.removeprefix("<image>\n").splitlines():
            lines += textwrap.wrap(mark + line, max(30, width // 7))
    height = max(view.height for view in views)
    card = Image.new("RGB", (width, height + 14 * len(lines) + 20), "white")
    card.paste(views[0], (4, 4))
    card.paste(views[1], (views[0].width + 12, 4))
    ImageDraw.Draw(card).multiline_text((4, height + 8), "\n".join(lines), "black", face, spacing=3)
    return card


if __name__ == "__main__":
    cli.run(main)
