"""One tile: pixels of LLaVA's two ways to make a square, and of images of any shape."""

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.layouts.layout import vector
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.data.layouts.single import Single
from vlm_jax.errors import UserError

SIZES = [(50, 30), (30, 50), (28, 28), (1, 1), (333, 517), (1000, 1), (1, 1000), (220, 28), (27, 29)]


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [*SIZES, (30_000, 2), (2, 30_000)])
def test_always_one_tile(fit, size):
    layout = Single(tile_size=28, fit=fit)
    patches = layout.cut_patches(picture(*size), 14)
    assert patches.shape == (1, 4, 588)
    assert layout.place(*size, 4).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(patches, patchify(np.stack(layout.views(picture(*size))), 14))


@pytest.mark.torch
@pytest.mark.parametrize("size", SIZES)
def test_crop_is_that_of_clips_processor(size):
    module = pytest.importorskip("transformers.models.clip")
    name = "CLIPImageProcessorPil" if hasattr(module, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    theirs = getattr(module, name)(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_normalize=False, do_rescale=False
    )
    expected = np.asarray(theirs(picture(*size), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    ours = Single(tile_size=28, fit="crop").views(picture(*size))[0]
    np.testing.assert_allclose(ours.astype(int), expected, atol=1)  # of long images only the middle is computed
    assert (ours != expected).mean() < 0.01


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (28, 28), (1, 1), (27, 29)])
def test_padding_is_llavas(size):
    """`expand2square` of `llava/mm_utils.py`, then CLIP's resizing, written down once more."""
    image, layout = picture(*size), Single(tile_size=28, fit="pad")
    mean = tuple(int(255 * x) for x in (0.48145466, 0.4578275, 0.40821073))
    assert layout.color == mean
    side = max(size)
    square = Image.new("RGB", (side, side), mean)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = np.asarray(square.resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(layout.views(image)[0], expected)


def test_padding_of_a_long_picture_is_nearly_that_of_the_whole():
    band = Image.fromarray(np.full((20, 300, 3), (200, 10, 60), np.uint8))
    tile = Single(tile_size=32, fit="pad").views(band)[0]
    rows = np.flatnonzero((tile == (200, 10, 60)).all(axis=(1, 2)))
    assert len(rows) == 2  # 32 * 20 / 300
    assert (tile[:14] == (122, 116, 104)).all()


def test_the_same_picture_in_grey_is_the_same_tile():
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60), np.uint8))
    for fit in ("stretch", "pad", "crop"):
        layout = Single(tile_size=28, fit=fit)
        np.testing.assert_array_equal(layout.views(grey)[0], layout.views(grey.convert("RGB"))[0])


def test_wrapped_tokens_stand_between_two_learned_vectors():
    layout = Single(tile_size=28, wrapped=True)
    assert layout.vectors == ("begin", "end")
    assert layout.place(50, 30, 4).tolist() == [vector(0), 0, 1, 2, 3, vector(1)]
    assert Single().vectors == ()


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"layout\.color"):
        Single(color=(0, 0, 256))
    with pytest.raises(UserError, match=r"layout\.tile_size"):
        Single(tile_size=0)
