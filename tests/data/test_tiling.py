import dataclasses

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.tiling import ClosestAspect, choose_grid, count_tiles, cut_tiles, patchify, unpatchify
from vlm_jax.errors import UserError

# Width, height; grid and visual tokens (256 a tile, thumbnail included) with at most 12 tiles; grid with at most 40.
GRIDS = [
    (336, 336, (1, 1), 256, (1, 1)),
    (640, 480, (4, 3), 3328, (4, 3)),
    (480, 640, (3, 4), 3328, (3, 4)),
    (1024, 768, (4, 3), 3328, (4, 3)),
    (800, 200, (4, 1), 1280, (4, 1)),
    (200, 1600, (1, 8), 2304, (1, 8)),
    (1920, 1080, (4, 2), 2304, (7, 4)),
    (2480, 3508, (2, 3), 1792, (5, 7)),
    (3840, 1600, (5, 2), 2816, (7, 3)),
    (100, 80, (4, 3), 3328, (5, 4)),
]
SIZES = [(336, 336), (640, 480), (480, 640), (800, 200), (200, 1600), (1920, 1080), (100, 80), (1, 1), (7, 500),
         (449, 448), (1000, 600), (56, 56), (113, 57)]  # fmt: skip


def picture(width, height):
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height", "grid12", "tokens12", "grid40"), GRIDS)
def test_grids(width, height, grid12, tokens12, grid40):
    assert choose_grid(width, height, ClosestAspect()) == grid12
    assert count_tiles(width, height, ClosestAspect()) * 256 == tokens12
    assert choose_grid(width, height, ClosestAspect(max_tiles=40)) == grid40
    cells = grid40[0] * grid40[1]
    assert count_tiles(width, height, ClosestAspect(max_tiles=40, thumbnail=False)) == cells
    assert count_tiles(width, height, ClosestAspect(max_tiles=40)) == cells + (cells > 1)


def test_min_tiles_removes_small_grids():
    assert choose_grid(336, 336, ClosestAspect(min_tiles=2, max_tiles=12)) == (2, 2)


def test_tiles_are_the_resized_image_cut_in_row_major_order():
    layout = ClosestAspect(tile_size=28)
    image = picture(130, 100)
    tiles = cut_tiles(image, layout)
    assert tiles.shape == (13, 28, 28, 3)
    assert tiles.dtype == np.uint8
    canvas = np.asarray(image.resize((4 * 28, 3 * 28), Image.Resampling.BICUBIC))
    for k in range(12):
        x, y = k % 4 * 28, k // 4 * 28
        np.testing.assert_array_equal(tiles[k], canvas[y : y + 28, x : x + 28])
    np.testing.assert_array_equal(tiles[12], np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)))


@pytest.mark.torch
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("side", [28, 64])
def test_tiles_equal_transformers(width, height, side):
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    processor = module.GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=12,
        resample=3, do_rescale=False, do_normalize=False, do_convert_rgb=True,
    )  # fmt: skip
    image = picture(width, height)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    tiles = cut_tiles(image, ClosestAspect(tile_size=side))
    np.testing.assert_array_equal(tiles.transpose(0, 3, 1, 2), expected)


def test_patches_are_raster_order_rows_of_pixels_and_come_back():
    tiles = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), dtype=np.uint8)
    patches = patchify(tiles, 14)
    assert patches.shape == (3, 6, 14 * 14 * 3)
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(patches[1, 4], tiles[1, 14:28, 14:28].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 14), tiles)
    # A rest that makes no whole patch is dropped right and below.
    wider = np.pad(tiles, [(0, 0), (0, 13), (0, 1), (0, 0)], constant_values=7)
    np.testing.assert_array_equal(patchify(wider, 14), patches)


def test_bad_layouts():
    with pytest.raises(UserError, match="min_tiles"):
        ClosestAspect(min_tiles=5, max_tiles=4)
    with pytest.raises(UserError, match="tile_size"):
        dataclasses.replace(ClosestAspect(), tile_size=0)
