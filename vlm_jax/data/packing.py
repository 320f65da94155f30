"""Packing: which conversations share a row, and the filling of a row of the batch.

A row has two budgets, tokens and tile slots. Records are taken in a shuffled order and each goes into the open row that
it fills best (best fit), as peers do with buffers while streaming; here sizes are known beforehand, so the plan is a
pure function of sizes and random generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm_jax.batch import TEXT, Batch
from vlm_jax.data.prepare import Example
from vlm_jax.errors import UserError

_OPEN_ROWS = 1024
"""Rows kept open at a time. More of them pack hardly better and take longer."""


def plan_rows(sizes: np.ndarray, tokens: int, tiles: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Distributes records over rows, every record exactly once.

    Args:
      sizes: int [n, 2], tokens and tiles of every record.
      tokens: token budget of a row.
      tiles: tile budget of a row.
      rng: decides the order of records and rows; equal generators give equal plans.

    Returns:
      Row by row, the numbers of its records (int64), in the order in which they stand in the row.

    Raises:
      UserError: a record is larger than a row.
    """
    sizes = np.asarray(sizes).reshape(-1, 2)
    too_large = np.flatnonzero((sizes[:, 0] > tokens) | (sizes[:, 1] > tiles))
    if len(too_large):
        first = too_large[0]
        raise UserError(
            f"record number {first} does not fit a row: {sizes[first, 0]} tokens and {sizes[first, 1]} tiles, a row "
            f"holds {tokens} and {tiles} ({len(too_large)} record(s) too large)"
        )
    open_rows = _OpenRows(tokens, tiles)
    rows: list[list[int]] = []
    for record in rng.permutation(len(sizes)).tolist():
        slot = open_rows.place(*sizes[record].tolist())
        if open_rows.row_of[slot] < 0:
            open_rows.row_of[slot] = len(rows)
            rows.append([])
        rows[open_rows.row_of[slot]].append(record)
    return [np.array(rows[i], np.int64) for i in rng.permutation(len(rows))]


class _OpenRows:
    """What is left of the budgets of the rows that are still open, and best fit among them."""

    def __init__(self, tokens: int, tiles: int) -> None:
        self.budget = (tokens, tiles)
        self.tokens = np.full(_OPEN_ROWS, tokens, np.int64)
        self.tiles = np.full(_OPEN_ROWS, tiles, np.int64)
        self.row_of = [-1] * _OPEN_ROWS  # number of the row in each slot, -1 = none yet
        self._scale = tokens / max(tiles, 1)  # a tile's worth in tokens, so that both remainders count alike

    def place(self, tokens: int, tiles: int) -> int:
        """Takes room for a record in the fitting row with the least left over; returns its slot."""
        fits = (self.tokens >= tokens) & (self.tiles >= tiles)
        left = self.tokens + self._scale * self.tiles
        slot = int(np.where(fits, left, np.inf).argmin())
        if not fits[slot]:  # every slot is in use and none has room: the fullest row is closed
            slot = int(left.argmin())
            self.tokens[slot], self.tiles[slot] = self.budget
            self.row_of[slot] = -1
        self.tokens[slot] -= tokens
        self.tiles[slot] -= tiles
        return slot


def pack_row(examples: Sequence[Example], batch: Batch, row: int, tokens_per_tile: int) -> None:
    """Writes `examples` one after another into row `row` of a NumPy batch, in place.

    Args:
      examples: at most as many tokens and tiles as the row holds.
      batch: a batch of `empty_batch`, whose row is still padding.
      row: number of the row.
      tokens_per_tile: n, visual tokens of one tile.

    Raises:
      ValueError: the row does not hold the examples.
    """
    token = tile = 0
    for segment, example in enumerate(examples, start=1):
        length, count = len(example.tokens), len(example.patches)
        end, tile_end = token + length, tile + count
        if end > batch.tokens.shape[1] or tile_end > batch.patches.shape[1]:
            raise ValueError(
                f"row of {batch.tokens.shape[1]} tokens and {batch.patches.shape[1]} tiles is too small for "
                f"{end} tokens and {tile_end} tiles"
            )
        here = np.s_[row, token:end]
        batch.tokens[here] = example.tokens
        batch.loss_weights[here] = example.loss_weights
        batch.positions[here] = example.positions
        batch.segments[here] = segment
        batch.branches[here] = example.branches
        batch.splice[here] = np.where(example.visual < 0, TEXT, example.visual + tile * tokens_per_tile)
        there = np.s_[row, tile:tile_end]
        batch.patches[there] = example.patches
        batch.tile_grid[there] = example.tile_grid
        batch.tile_segment[there] = segment
        batch.tile_image[there] = example.tile_image
        batch.tile_slot[there] = example.tile_slot
        token, tile = end, tile_end
