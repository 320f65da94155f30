"""What is changed in training pictures at random: so far JPEG's losses.

Nothing here changes a size, so an index of sizes holds with and without it.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

QUALITIES = range(75, 101)


def reencode(tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sends every tile through JPEG at a quality of its own, each of `QUALITIES` equally likely.

    InternVL's augmentation for sources with `data_augment` (`build_transform` in `internvl/train/dataset.py`): it is
    applied to the tiles, after the picture is cut, not to the picture.

    Args:
      tiles: uint8 [k, S, S, 3].
      rng: draws one integer for every tile.

    Returns:
      uint8 [k, S, S, 3].
    """
    qualities = rng.integers(QUALITIES.start, QUALITIES.stop, len(tiles))
    return np.stack([_through_jpeg(tile, int(quality)) for tile, quality in zip(tiles, qualities, strict=True)])


def _through_jpeg(tile: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))
