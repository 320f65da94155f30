"""Grouping by modality and length: which conversations share a batch, where each has a row of its own.

Batches are of conversations with images or of text alone, never of both, and their lengths are alike. LLaVA-1.5 trains
so (`group_by_modality_length`, `llava/train/llava_trainer.py`): language conversations are often longer, and a batch
waits for its longest. There a random batch is sorted and dealt to the devices by length, and what is left of both
modalities makes one mixed batch; here several batches are sorted together, and there is no mixed one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MEGA_BATCH = 50
"""Batches whose records are sorted together (`LengthGroupedSampler` of transformers): more of them are more alike
inside, and less is left to chance."""


class Groups(NamedTuple):
    """Records in the order of their rows, int64 [n], and the first row of every batch with n at the end."""

    order: np.ndarray
    bounds: list[int]


def group(sizes: np.ndarray, rows: int, rng: np.random.Generator) -> Groups:
    """Distributes records over batches, every record exactly once.

    Args:
      sizes: int [n, 2], tokens and tiles of every record; one with tiles has images.
      rows: of a batch, at most; the records of a modality are dealt evenly over as few batches as hold them.
      rng: decides the order of batches and records; equal generators give equal plans.
    """
    sizes = np.asarray(sizes).reshape(-1, 2)
    has_images = sizes[:, 1] > 0
    batches = [
        batch
        for records in (np.flatnonzero(has_images), np.flatnonzero(~has_images))
        for batch in _alike(rng.permutation(records), sizes[:, 0], rows)
    ]
    shuffled = [rng.permutation(batches[number]) for number in rng.permutation(len(batches))]
    return Groups(np.concatenate([np.zeros(0, np.int64), *shuffled]), np.cumsum([0, *map(len, shuffled)]).tolist())


def deal(items: int, parts: int) -> list[int]:
    """Bounds that cut `items` into `parts` whose sizes differ by at most one."""
    return [items * part // parts for part in range(parts + 1)] if parts else [0]


def _alike(records: np.ndarray, tokens: np.ndarray, rows: int) -> list[np.ndarray]:
    """Batches of records; `MEGA_BATCH` of them at a time are sorted by length."""
    bounds = deal(len(records), -(-len(records) // rows))
    batches: list[np.ndarray] = []
    for first in range(0, len(bounds) - 1, MEGA_BATCH):
        cuts = bounds[first : first + MEGA_BATCH + 1]
        together = records[cuts[0] : cuts[-1]]
        together = together[np.argsort(-tokens[together], kind="stable")]
        batches += np.split(together, [cut - cuts[0] for cut in cuts[1:-1]])
    return batches
