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

CHUNK = 16_384
"""Records packed together. Among fewer there is less to choose from; among more, rows have to be closed while there are
still records that would fit, and two slots in a hundred more stay empty."""

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
      ValueError: a record is larger than a row.
    """
    sizes = np.asarray(sizes).reshape(-1, 2)
    if len(sizes) and (sizes > (tokens, tiles)).any():
        raise ValueError(f"a record of up to {sizes.max(axis=0)} tokens and tiles is larger than a row")
    order = rng.permutation(len(sizes))
    chunks = np.array_split(order, -(-len(order) // CHUNK)) if len(order) else []
    rows = [row for chunk in chunks for row in _best_fit(chunk, sizes, tokens, tiles)]
    return [np.array(rows[i], np.int64) for i in rng.permutation(len(rows))]


def _best_fit(records: np.ndarray, sizes: np.ndarray, tokens: int, tiles: int) -> list[list[int]]:
    """Rows of the records, each of which goes into the open row that it fills best."""
    open_rows = _OpenRows(tokens, tiles)
    rows: list[list[int]] = []
    row_of = [-1] * _OPEN_ROWS  # number of the row in each slot, -1 = none yet
    for record, size in zip(records.tolist(), sizes[records].tolist(), strict=True):
        slot, is_new = open_rows.place(*size)
        if is_new or row_of[slot] < 0:
            row_of[slot] = len(rows)
            rows.append([])
        rows[row_of[slot]].append(record)
    return rows


class _OpenRows:
    """What is left of the budgets of the rows that are still open, and best fit among them.

    A million records come through `place`, so nothing is computed in it anew that could be kept.
    """

    def __init__(self, tokens: int, tiles: int) -> None:
        self._budget = (tokens, tiles)
        self._tokens = np.full(_OPEN_ROWS, tokens, np.int32)
        self._tiles = np.full(_OPEN_ROWS, tiles, np.int32)
        self._scale = tokens / max(tiles, 1)  # a tile's worth in tokens, so that both remainders count alike
        self._left = (self._tokens + self._scale * self._tiles).astype(np.float32)
        self._scratch = np.empty_like(self._left)
        self._full, self._more = np.empty(_OPEN_ROWS, bool), np.empty(_OPEN_ROWS, bool)

    def place(self, tokens: int, tiles: int) -> tuple[int, bool]:
        """Takes room for a record in the fitting row with the least left over.

        Returns:
          Its slot, and whether the row that was there had to be closed: the fullest one, where none has room.
        """
        np.less(self._tokens, tokens, out=self._full)
        np.less(self._tiles, tiles, out=self._more)
        np.logical_or(self._full, self._more, out=self._full)
        np.copyto(self._scratch, self._left)
        np.copyto(self._scratch, np.inf, where=self._full)
        slot = int(self._scratch.argmin())
        closed = bool(self._full[slot])
        if closed:
            slot = int(self._left.argmin())
            self._tokens[slot], self._tiles[slot] = self._budget
        self._tokens[slot] -= tokens
        self._tiles[slot] -= tiles
        self._left[slot] = self._tokens[slot] + self._scale * self._tiles[slot]
        return slot, closed


def _spliced(visual: np.ndarray, first: int, vectors: int) -> np.ndarray:
    """`Example.visual` as `Batch.splice`: the conversation's visual tokens begin at `first`, learned vectors at
    `vectors`.
    """
    return np.where(visual >= 0, visual + first, np.where(visual == TEXT, TEXT, vectors - 2 - visual))


def pack_row(
    examples: Sequence[Example | None],
    batch: Batch,
    row: int,
    tokens_per_tile: int,
    sizes: np.ndarray | None = None,
) -> None:
    """Writes `examples` one after another into row `row` of a NumPy batch, in place.

    Args:
      examples: those of the row; None, which stays padding, for a record that turned out to be bad.
      batch: a batch of `empty_batch`, whose row is still padding.
      row: number of the row.
      tokens_per_tile: n, visual tokens of one tile.
      sizes: int [examples, 2], the tokens and tiles of each; needed where one is None.

    Raises:
      ValueError: the row does not hold the examples.
    """
    if sizes is None:
        sizes = np.array([(len(e.tokens), len(e.patches)) for e in examples if e is not None]).reshape(-1, 2)
    ends = np.cumsum(sizes, axis=0)
    if len(ends) and (ends[-1] > (batch.tokens.shape[1], batch.patches.shape[1])).any():
        raise ValueError(
            f"row of {batch.tokens.shape[1]} tokens and {batch.patches.shape[1]} tiles is too small for {ends[-1]}"
        )
    starts = (ends - sizes).tolist()
    vectors = batch.patches.shape[1] * tokens_per_tile
    for segment, (example, start, end) in enumerate(zip(examples, starts, ends.tolist(), strict=True), start=1):
        if example is None:
            continue
        here = np.s_[row, start[0] : end[0]]
        batch.tokens[here] = example.tokens
        batch.loss_weights[here] = example.loss_weights
        batch.positions[here] = example.positions
        batch.segments[here] = segment
        batch.branches[here] = example.branches
        batch.splice[here] = _spliced(example.visual, start[1] * tokens_per_tile, vectors)
        there = np.s_[row, start[1] : end[1]]
        batch.patches[there] = example.patches
        batch.tile_grid[there] = example.tile_grid
        batch.tile_segment[there] = segment
        batch.tile_image[there] = example.tile_image
        batch.tile_slot[there] = example.tile_slot
