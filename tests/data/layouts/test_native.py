"""Native raster against Fuyu's own image processor."""

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.layouts.layout import ROW_TOKEN
from vlm_jax.data.layouts.native import NativeRaster
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.errors import UserError

LAYOUT = NativeRaster(patch_size=4, max_width=40, max_height=24, slot=6)
SIZES = [(40, 24), (17, 5), (1, 1), (100, 30), (30, 100), (41, 24), (4, 4), (200, 1)]
THEIRS = SIZES[:-1]  # which makes of 200 x 1 a picture without rows, and stops


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_every_patch_stands_once_and_every_row_ends(size):
    columns, rows = LAYOUT.raster(*size)
    place = LAYOUT.place(*size, 6)
    assert len(place) == rows * (columns + 1)
    assert place[place >= 0].tolist() == list(range(rows * columns))
    assert np.flatnonzero(place == ROW_TOKEN).tolist() == [(row + 1) * (columns + 1) - 1 for row in range(rows)]
    grids = LAYOUT.patch_grids(*size, 4)
    assert grids.prod(axis=1).sum() == rows * columns
    assert len(grids) == LAYOUT.tiles(*size)
    assert (grids > 0).all()


def test_a_whole_number_of_patches_is_those_patches():
    image = picture(40, 24)
    slots = LAYOUT.cut_patches(image, 4)
    np.testing.assert_array_equal(slots.reshape(-1, 48), patchify(np.asarray(image)[None], 4)[0])


def test_what_stands_right_and_below_does_not_reach_the_picture():
    image = picture(17, 5)
    (view,) = LAYOUT.views(image)
    assert view.shape == (8, 20, 3)
    np.testing.assert_array_equal(view[:5, :17], np.asarray(image))
    assert (view[5:] == 1).all()
    assert (view[:, 17:] == 1).all()
    (again,) = LAYOUT.pictures(LAYOUT.cut_patches(image, 4), image.size, 4)
    np.testing.assert_array_equal(again, view)


@pytest.mark.torch
@pytest.mark.parametrize("size", THEIRS)
def test_pixels_are_those_of_fuyus_processor(size):
    module = pytest.importorskip("transformers.models.fuyu")
    name = "FuyuImageProcessorPil" if hasattr(module, "FuyuImageProcessorPil") else "FuyuImageProcessor"
    theirs = getattr(module, name)(
        size={"height": 24, "width": 40}, patch_size={"height": 4, "width": 4}, do_normalize=False, do_rescale=False
    )
    images = theirs(picture(*size), return_tensors="np")["images"][0][0]
    expected = np.asarray(images).transpose(1, 2, 0)
    (view,) = LAYOUT.views(picture(*size))
    down, across = view.shape[:2]
    np.testing.assert_array_equal(view, expected[:down, :across])
    assert (expected[down:] == 1).all()
    assert (expected[:, across:] == 1).all()


def test_a_full_hd_picture_has_the_published_numbers():
    layout = NativeRaster()
    assert layout.raster(1920, 1080) == (64, 36)
    assert len(layout.place(1920, 1080, 64)) == 36 * 65
    assert layout.raster(3840, 2160) == (64, 36)
    assert layout.raster(31, 30) == (2, 1)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"layout\.slot"):
        NativeRaster(slot=0)
    with pytest.raises(UserError, match="patch_projection"):
        LAYOUT.check(448, 14, 1024)
