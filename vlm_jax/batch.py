"""The Batch contract: the one thing that both models and data import.

A row is a *pack* of conversations. The host (NumPy) fills these arrays, the device only gathers: no shape depends on
data. Training, evaluation and generation all use this pytree. The file imports neither JAX nor Flax, because data
workers use it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TEXT = -1
"""Value of `Batch.splice` where the position holds an ordinary text token."""


class Batch(NamedTuple):
    """One batch of packed rows (B rows, T tokens a row, K tile slots a row, N patches a tile, P patch side).

    Attributes:
      tokens: int32 [B, T]. Input ids; the placeholder id stands where a visual token goes. Padding is 0.
      loss_weights: float32 [B, T]. Weight of the prediction *of* `tokens[:, t]`, which is made at position t - 1.
      positions: int32 [B, T]. Rotary position; restarts at 0 in every conversation, and in every branch of one at the
        number of tokens that its branches share.
      segments: int32 [B, T]. Number of the conversation in its row, from 1; 0 is padding.
      branches: int32 [B, T]. Number of the branch in its conversation, from 1; 0 is what all of them see. A
        conversation whose turns follow one another is all 0.
      patches: uint8 [B, K, N, P*P*3]. Each tile as its patches in raster order, each patch as rows of RGB pixels.
      tile_grid: int32 [B, K, 2]. Patches down and across in this tile; 0, 0 means no tile.
      tile_segment: int32 [B, K]. Which conversation (as in `segments`) the tile belongs to; 0 means none.
      tile_image: int32 [B, K]. Which image of that conversation, from 0.
      tile_slot: int32 [B, K]. Place of the tile among those of its image, in the order of the image's layout.
      splice: int32 [B, T]. -1 for text, else an index into this row's K*n visual tokens followed by the model's
        learned vectors, where n is the number of visual tokens that the connector makes of one tile.
      extras: host arrays that a part of the model declares (instruction ids for a Q-Former, say), by name.
    """

    tokens: Any
    loss_weights: Any
    positions: Any
    segments: Any
    branches: Any
    patches: Any
    tile_grid: Any
    tile_segment: Any
    tile_image: Any
    tile_slot: Any
    splice: Any
    extras: dict[str, Any]


class BatchShape(NamedTuple):
    """The static sizes of a batch: rows, tokens a row, tile slots a row, patches a tile, values a patch (P*P*3)."""

    rows: int
    tokens: int
    tiles: int
    patches: int
    patch_values: int


def empty_batch(shape: BatchShape) -> Batch:
    """Returns a batch of padding only (NumPy arrays), to be filled in place or to trace shapes with."""
    b, t, k = shape.rows, shape.tokens, shape.tiles
    return Batch(
        tokens=np.zeros((b, t), np.int32),
        loss_weights=np.zeros((b, t), np.float32),
        positions=np.zeros((b, t), np.int32),
        segments=np.zeros((b, t), np.int32),
        branches=np.zeros((b, t), np.int32),
        patches=np.zeros((b, k, shape.patches, shape.patch_values), np.uint8),
        tile_grid=np.zeros((b, k, 2), np.int32),
        tile_segment=np.zeros((b, k), np.int32),
        tile_image=np.zeros((b, k), np.int32),
        tile_slot=np.zeros((b, k), np.int32),
        splice=np.full((b, t), TEXT, np.int32),
        extras={},
    )
