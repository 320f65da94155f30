import dataclasses

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.patches import patchify, unpatchify
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
# One pixel, odd sides, extreme shapes, aspects that two grids are equally near to (3:2 lies between 1:1 and 2:1), and
# both sides of the area that makes a tie choose the larger grid.
SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 3), (3, 5), (5, 3), (1, 3), (3, 1), (1, 1000), (1000, 1), (2, 1999), (1999, 2),
    (7, 500), (500, 7), (13, 13), (28, 28), (56, 56), (113, 57), (57, 113), (100, 80), (101, 67), (150, 100),
    (100, 150), (250, 100), (100, 250), (350, 100), (100, 350), (300, 200), (600, 400), (700, 400), (63, 63),
    (64, 64), (65, 64), (64, 65), (90, 90), (91, 91), (127, 127), (128, 128), (129, 128), (181, 181), (182, 182),
    (255, 257), (320, 320), (333, 111), (111, 333), (336, 336), (449, 448), (448, 449), (640, 480), (480, 640),
    (800, 200), (200, 800), (200, 1600), (997, 991), (991, 997), (1000, 600), (1024, 768), (1200, 61), (61, 1200),
    (1279, 3), (1280, 720), (1920, 1080), (1081, 1921), (340, 240), (240, 340), (170, 240),
    *((int(w), int(h)) for w, h in np.random.default_rng(7).integers(1, 700, (45, 2))),
]  # fmt: skip
LARGE = [
    (8000, 6000), (6000, 8000), (8000, 1), (1, 6000), (7999, 5999), (7777, 123), (123, 5555), (3840, 1600),
    (2480, 3508), (4032, 3024), (5472, 3648), (1920, 1080), (640, 480), (633, 634), (634, 633), (1, 1), (31, 47),
    (896, 896), (897, 895),
]  # fmt: skip


def picture(width, height):
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height", "grid12", "tokens12", "grid40"), GRIDS)
def test_grids(width, height, grid12, tokens12, grid40):
    assert ClosestAspect().grid(width, height) == grid12
    assert ClosestAspect().tiles(width, height) * 256 == tokens12
    assert ClosestAspect(max_tiles=40).grid(width, height) == grid40
    cells = grid40[0] * grid40[1]
    assert ClosestAspect(max_tiles=40, thumbnail=False).tiles(width, height) == cells
    assert ClosestAspect(max_tiles=40).tiles(width, height) == cells + (cells > 1)


def test_min_tiles_removes_small_grids():
    assert ClosestAspect(min_tiles=2, max_tiles=12).grid(336, 336) == (2, 2)


def test_tiles_are_the_resized_image_cut_in_row_major_order():
    layout = ClosestAspect(tile_size=28)
    image = picture(130, 100)
    tiles = layout.cut_tiles(image)
    assert tiles.shape == (13, 28, 28, 3)
    assert tiles.dtype == np.uint8
    canvas = np.asarray(image.resize((4 * 28, 3 * 28), Image.Resampling.BICUBIC))
    for k in range(12):
        x, y = k % 4 * 28, k // 4 * 28
        np.testing.assert_array_equal(tiles[k], canvas[y : y + 28, x : x + 28])
    np.testing.assert_array_equal(tiles[12], np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)))


def limits(number):
    """(min, max) tiles of the picture with this number: every max from 1 to 40, and a min above 1 now and then."""
    most = number % 40 + 1
    return (1, 1, max(1, most // 3), 1, most)[number % 5], most


def check_against_transformers(width, height, side, least, most):
    """Byte for byte before normalisation. `transformers` works with Pillow here, as InternVL's own code does."""
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    processor = module.GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, min_patches=least, max_patches=most,
        resample=3, do_rescale=False, do_normalize=False, do_convert_rgb=True,
    )  # fmt: skip
    image = picture(width, height)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    tiles = ClosestAspect(tile_size=side, min_tiles=least, max_tiles=most).cut_tiles(image)
    assert tiles.dtype == expected.dtype == np.uint8
    np.testing.assert_array_equal(tiles.transpose(0, 3, 1, 2), expected, f"{width} x {height}, {least} to {most} tiles")


@pytest.mark.torch
def test_tiles_equal_transformers():
    assert len(set(SIZES)) > 100
    for number, (width, height) in enumerate(SIZES):
        check_against_transformers(width, height, (28, 64, 32)[number % 3], *limits(number))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 6, 12, 40])
def test_tiles_of_full_size_equal_transformers(most):
    for width, height in LARGE:
        check_against_transformers(width, height, 448, 1, most)


def reference_grid(width, height, least, most, side):
    """InternVL's rule, in another way: its candidates in the order of a set, which is that of Python's hashes."""
    found = {(i, j) for n in range(least, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    order = sorted((g for g in found if least <= g[0] * g[1] <= most), key=lambda g: g[0] * g[1])
    distances = [abs(width / height - i / j) for i, j in order]
    nearest = [grid for grid, distance in zip(order, distances, strict=True) if distance == min(distances)]
    large_enough = [grid for grid in nearest[1:] if 2 * width * height > side * side * grid[0] * grid[1]]
    return [nearest[0], *large_enough][-1]


def test_grids_do_not_depend_on_the_order_of_equal_products():
    rng = np.random.default_rng(3)
    sizes = [*SIZES, *LARGE, *((int(w), int(h)) for w, h in rng.integers(1, 2000, (300, 2)))]
    for number, (width, height) in enumerate(sizes):
        least, most = limits(number)
        layout = ClosestAspect(min_tiles=least, max_tiles=most)
        assert layout.grid(width, height) == reference_grid(width, height, least, most, 448)


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


def test_more_tiles_than_any_model_takes_are_refused():
    with pytest.raises(UserError, match=r"layout\.max_tiles: must be at most 1024"):
        ClosestAspect(max_tiles=1025)
