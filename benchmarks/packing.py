"""How full rows get, and how long planning takes: this package's plan, the reference's buffers, and no packing.

    python benchmarks/packing.py [--records=65536] [--seed=0]

The records are sizes alone: captions, documents of up to 12 tiles and a thumbnail, several images, and text, a quarter
each, tiled at 448 pixels with 256 visual tokens a tile as Mini-InternVL does. All three ways get the same records.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.plan.packing import plan_rows
from vlm_jax.data.plan.shape import choose_shape

TOKENS_PER_TILE, AROUND_AN_IMAGE = 256, 2
"""Visual tokens of a tile; `<img>` and `</img>`."""

REFERENCE = (16384, 48, 20)
"""Tokens, tiles and buffers of InternVL2.5's scripts (`shell/internvl2.5/stage2/*.sh`)."""


def mixture(records: int, seed: int) -> np.ndarray:
    """int32 [records, 2], tokens and tiles, of a quarter each of four kinds, in random order."""
    rng = np.random.default_rng(seed)
    quarter = records // 4
    layout = ClosestAspect(max_tiles=12)

    def text(mean: float, spread: float, least: int, most: int) -> int:
        return int(np.clip(rng.lognormal(np.log(mean), spread), least, most))

    def tiles(images: int, short: float, long: float, aspect: float) -> int:
        """Of pictures whose shorter side has about so many pixels."""
        total = 0
        for _ in range(images):
            side, ratio = rng.uniform(short, long), np.exp(rng.normal(0, aspect))
            total += layout.among(images).tiles(int(side * max(1, ratio)), int(side * max(1, 1 / ratio)))
        return total

    sizes = []
    for _ in range(quarter):
        sizes.append((tiles(1, 200, 700, 0.4), 1, text(60, 0.5, 10, 400)))  # captions
        sizes.append((tiles(1, 900, 2500, 0.35), 1, text(250, 0.9, 20, 3000)))  # documents
        images = int(rng.integers(2, 7))
        sizes.append((tiles(images, 300, 1500, 0.4), images, text(200, 0.7, 20, 1500)))
    sizes += [(0, 0, text(350, 0.9, 20, 4000)) for _ in range(records - 3 * quarter)]
    array = np.array(sizes)
    tokens = array[:, 0] * TOKENS_PER_TILE + array[:, 1] * AROUND_AN_IMAGE + array[:, 2] + 50  # the template's
    return rng.permutation(np.stack([tokens, array[:, 0]], axis=1).astype(np.int32))


def buffers(sizes: np.ndarray, tokens: int, tiles: int, most: int) -> Iterator[tuple[int, int]]:
    """Tokens and tiles of the rows that InternVL's `PackedDataset` emits for records in this order.

    A record goes into the first buffer that has room, seen from the one with the most tiles. A full buffer is emitted,
    and the fullest when there are more than `most` (`PackedDataset` in `internvl/train/dataset_packed.py`).
    """
    open_rows: list[tuple[int, int]] = []  # tiles, tokens
    for used, images in sizes.tolist():
        if used > tokens or images > tiles:
            continue
        open_rows.sort(reverse=True)
        fits = (n for n, row in enumerate(open_rows) if row[0] + images <= tiles and row[1] + used <= tokens)
        place = next(fits, None)
        row = (images, used)
        if place is not None:
            before = open_rows.pop(place)
            row = (before[0] + images, before[1] + used)
        if row[0] == tiles or row[1] == tokens:
            yield row[1], row[0]
            continue
        open_rows.append(row)
        if len(open_rows) > most:
            fullest = max(open_rows)
            open_rows.remove(fullest)
            yield fullest[1], fullest[0]
    yield from ((used, images) for images, used in open_rows)


def fill(used: np.ndarray, rows: int, tokens: int, tiles: int) -> list[str]:
    """Cells of the table: rows, and the shares of token and tile slots that hold something."""
    return [f"{rows:,}", f"{used[0] / (rows * tokens):.1%}", f"{used[1] / (rows * tiles):.1%}"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=65_536, help="how many (default: one window)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = mixture(arguments.records, arguments.seed)
    table = Table("way", "tokens", "tiles", "rows", "tokens filled", "tiles filled", "seconds to plan")
    for wanted in ((None, None), (8192, None), (16384, None), REFERENCE[:2]):
        began = time.perf_counter()
        shape = choose_shape(sizes, 32_768, *wanted)
        chosen = time.perf_counter()
        rows = plan_rows(sizes, shape.tokens, shape.tiles, np.random.default_rng(0))
        planned = time.perf_counter()
        how = "all chosen" if wanted[0] is None else "tiles chosen" if wanted[1] is None else "given"
        seconds = f"{planned - chosen:.2f}" + (f" (+ {chosen - began:.2f} to choose)" if None in wanted else "")
        used = sizes.sum(axis=0)
        table.add_row(
            f"planned, {how}", *map(str, shape[:2]), *fill(used, len(rows), shape.tokens, shape.tiles), seconds
        )
        emitted = np.array(list(buffers(sizes, shape.tokens, shape.tiles, REFERENCE[2])))
        table.add_row(
            f"{REFERENCE[2]} buffers", *map(str, shape[:2]), *fill(emitted.sum(axis=0), len(emitted), *shape[:2]), ""
        )
    alone = choose_shape(sizes, 32_768, packing=False)
    table.add_row("one a row", *map(str, alone[:2]), *fill(sizes.sum(axis=0), len(sizes), *alone[:2]), "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
