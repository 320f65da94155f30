"""Native raster against Fuyu's own image processor."""

import collections
import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import fuyu
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.layout import ROW_TOKEN
from vlm_jax.data.layouts.native import NativeRaster
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.sources import MemorySource
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
    with pytest.raises(UserError, match=r"layout\.sides: must lie in 1\.\.24 \(max_width and max_height\), got 8, 25"):
        dataclasses.replace(LAYOUT, sides=(8, 25))
    with pytest.raises(UserError, match=r"layout\.side: must lie in 1\.\.24"):
        dataclasses.replace(LAYOUT, side=0)


def test_at_a_side_of_its_own_a_picture_is_stretched():
    """`Image.resize` with Pillow's own filter, as in Otter's `prepare_fuyu`; small pictures grow."""
    layout = dataclasses.replace(LAYOUT, side=18)
    for size in SIZES:
        assert layout.raster(*size) == (5, 5)
        (view,) = layout.views(picture(*size))
        np.testing.assert_array_equal(view[:18, :18], np.asarray(picture(*size).resize((18, 18))))
        assert (view[18:] == 1).all()


def test_a_stage_of_another_size_draws_none():
    layout = dataclasses.replace(LAYOUT, side=8, sides=(8, 12)).resized(20)
    assert (layout.raster(40, 10), layout.raster(4, 4), layout.sides) == ((5, 2), (1, 1), ())


DRAWS = dataclasses.replace(LAYOUT, sides=(8, 12, 20))


def test_every_side_is_drawn_about_as_often():
    drawn = [DRAWS.drawn(f"captions:{number}") for number in range(3000)]
    counts = collections.Counter(layout.side for layout in drawn)
    assert counts.keys() == {8, 12, 20}
    assert all(900 < count < 1100 for count in counts.values())
    assert all(layout.sides == () for layout in drawn)
    assert LAYOUT.drawn("x") is LAYOUT
    assert DRAWS.settled() == LAYOUT


def test_a_draw_is_the_same_in_every_process():
    code = (
        "from vlm_jax.data.layouts.native import NativeRaster\n"
        "print([NativeRaster(sides=(448, 512, 768)).drawn(f'c:{i}').side for i in range(40)])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str([NativeRaster(sides=(448, 512, 768)).drawn(f"c:{i}").side for i in range(40)])


def test_what_is_measured_is_what_is_loaded():
    """Rows are planned before a picture is decoded; a record of another size than planned would leave a hole."""
    system = fuyu.system(sides=(8, 12, 20))
    sizes = [(8, 9), (40, 24), (100, 30), (1, 1)]
    records = [
        Conversation(
            (Turn("user", "<image>" * (number % 3) + "Which?"), Turn("assistant", "128.")),
            tuple(fuyu.picture(*size, 1) for size in sizes[: number % 3]),
            f"c:{number}",
            "captions",
        )
        for number in range(24)
    ]
    preparer = system.preparer(fuyu.tokenizer(), 256, training=True)
    batches = Batches(MemorySource(records), preparer, MixtureConfig(rows=2), seed=0)
    assert not batches.bad
    loaded = [batches[number] for number in range(batches.count(0))]
    assert not list(itertools.chain.from_iterable(item.bad for item in loaded))
    filled = sum(int((item.batch.segments > 0).sum()) for item in loaded)
    assert filled == sum(preparer.measure(record).tokens for record in records)
    sides = {preparer.tiling(record).side for record in records}
    assert sides == {8, 12, 20}
    outside = system.preparer(fuyu.tokenizer(), 256)
    assert outside.tiling(records[1]).side is None


def test_rows_of_native_pictures_are_filled_well():
    """`data.tokens` and `data.tiles` chosen from what was measured, for pictures of 1 to 60 patches."""
    rng = np.random.default_rng(0)
    turns = (Turn("user", "What is the total?"), Turn("assistant", "128."))
    records = [
        Conversation(turns, (fuyu.picture(*rng.integers(1, 60, 2).tolist(), 1),), f"c:{number}", "captions")
        for number in range(200)
    ]
    preparer = fuyu.system().preparer(fuyu.tokenizer(), 256, training=True)
    batches = Batches(MemorySource(records), preparer, MixtureConfig(rows=2), seed=0)
    assert not batches.bad
    shape = batches.shape
    assert shape.token_fill > 0.9
    assert shape.tile_fill > 0.8
