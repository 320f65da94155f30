"""Any resolution against LLaVA-NeXT's own image processor and counts of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.data.layouts.layout import vector
from vlm_jax.errors import UserError

NEWLINE = vector(0)
SIZES = [(336, 336), (640, 480), (480, 640), (800, 200), (200, 1600), (1920, 1080), (2480, 3508), (100, 80), (333, 517),
         (1000, 1), (1, 1000), (1, 1), (671, 337)]  # fmt: skip
# Width x height of the grid in pixels, of the table that was computed with transformers beforehand (specs, 0.5).
GRIDS = {(336, 336): (2, 1), (640, 480): (2, 2), (800, 200): (3, 1), (200, 1600): (1, 3), (1920, 1080): (2, 2),
         (2480, 3508): (2, 2), (3840, 1600): (3, 1), (100, 80): (2, 1), (480, 640): (2, 2)}  # fmt: skip


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "grid"), GRIDS.items())
def test_grids_of_the_release(size, grid):
    assert AnyRes().grid(*size) == grid


@pytest.fixture(scope="module")
def theirs():
    module = pytest.importorskip("transformers.models.llava_next")
    name = "LlavaNextImageProcessorPil" if hasattr(module, "LlavaNextImageProcessorPil") else "LlavaNextImageProcessor"
    side = {"height": 28, "width": 28}
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    return getattr(module, name)(
        size={"shortest_edge": 28},
        crop_size=side,
        image_grid_pinpoints=pinpoints,
        do_normalize=False,
        do_rescale=False,
        resample=3,
    )


@pytest.mark.torch
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(theirs, size):
    layout, image = AnyRes(tile_size=28), picture(*size)
    expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
    assert layout.tiles(*size) == len(expected)
    np.testing.assert_array_equal(layout.cut_tiles(image), expected.transpose(0, 2, 3, 1))


@pytest.mark.torch
@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_counts_are_those_of_transformers(width, height):
    from transformers.models.llava_next.modeling_llava_next import unpad_image
    from transformers.models.llava_next.processing_llava_next import select_best_resolution

    torch = pytest.importorskip("torch")
    layout, side = AnyRes(tile_size=28), 4
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    best = select_best_resolution((height, width), pinpoints)
    assert layout.grid(width, height) == (best[1] // 28, best[0] // 28)
    columns, rows = layout.grid(width, height)
    index = torch.arange(columns * rows * side * side).view(rows, columns, side, side).permute(0, 2, 1, 3)
    whole = index.reshape(1, rows * side, columns * side)
    kept = unpad_image(whole, (height, width))[0].numpy() + side * side
    expected = [*range(side * side), *np.pad(kept, ((0, 0), (0, 1)), constant_values=NEWLINE).ravel()]
    assert layout.place(width, height, side * side).tolist() == expected


def test_a_picture_of_one_pixel_height_has_the_view_of_the_whole_alone():
    assert AnyRes().place(1000, 1, 576).tolist() == list(range(576))


def test_what_is_not_left_out_is_there_once():
    place = AnyRes(unpad=False).place(640, 480, 576)
    assert len(place) == 576 + 48 * 48 + 48
    assert (place == NEWLINE).sum() == 48
    assert sorted(place[place >= 0]) == list(range(5 * 576))


def test_without_newlines_it_needs_no_learned_vector():
    layout = AnyRes(newline=False)
    assert layout.vectors == ()
    assert (layout.place(640, 480, 576) >= 0).all()
    assert AnyRes().vectors == ("newline",)


def test_a_budget_of_tiles_leaves_the_grids_that_fit():
    assert AnyRes().at_most(3).grid(640, 480) in ((2, 1), (1, 2), (3, 1), (1, 3))
    alone = AnyRes().at_most(1)
    assert alone.tiles(640, 480) == 1
    assert alone.place(640, 480, 4).tolist() == [0, 1, 2, 3, NEWLINE]
    assert len(alone.views(picture(64, 48))) == 1


def test_tokens_stand_where_the_picture_shows_what_they_see():
    """A picture of which each patch has its own grey, with a tower that gives each patch its mean."""
    layout = AnyRes(tile_size=4)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tiles = layout.cut_patches(Image.fromarray(np.repeat(grey[..., None], 3, axis=2)), 1)
    place = layout.place(8, 8, 16)[16:].reshape(8, 9)[:, :8]
    seen = tiles.reshape(-1, 3)[:, 0][place]
    np.testing.assert_array_equal(seen, grey)


def test_wrong_grids_are_refused():
    with pytest.raises(UserError, match=r"layout\.grids"):
        AnyRes(grids=((0, 1),))
