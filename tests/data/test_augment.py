import io

import numpy as np
from PIL import Image
from skimage import data

from vlm_jax.data.augment import QUALITIES, reencode


def through_jpeg(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality)
    stream.seek(0)
    return np.asarray(Image.open(stream).convert("RGB"))


def test_each_tile_goes_through_jpeg_at_a_quality_of_its_own():
    tile = data.astronaut()[:64, 100:164]
    tiles = np.stack([tile] * 400)
    known = {through_jpeg(tile, quality).tobytes(): quality for quality in range(75, 101)}
    assert len(known) == len(QUALITIES) == 26
    drawn = reencode(tiles, np.random.default_rng(0))
    assert (drawn.shape, drawn.dtype) == (tiles.shape, np.uint8)
    qualities = [known[tile.tobytes()] for tile in drawn]
    assert set(qualities) == set(range(75, 101))
    assert np.bincount(qualities).max() < 40  # of 400, where 15 are expected
    np.testing.assert_array_equal(drawn, reencode(tiles, np.random.default_rng(0)))
    assert (drawn != reencode(tiles, np.random.default_rng(1))).any()
    assert np.abs(drawn.astype(int) - tiles).mean() < 8
