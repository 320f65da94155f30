import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.augment import reencode
from vlm_jax.data.conversation import Conversation, RecordError, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.data.pixels import image_patches
from vlm_jax.errors import UserError

LAYOUT = ClosestAspect(tile_size=28, max_tiles=6)


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width, height, bands=3, seed=0):
    """Noise of 8 x 8 pixels, so that a JPEG keeps most of it."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), bands), dtype=np.uint8)
    return small.repeat(8, 0).repeat(8, 1)[:height, :width]


def plainly(data, layout, patch_size):
    """Tile by tile and patch by patch, with Pillow's own crops."""
    image = decode_image(data, "x")
    side, (columns, rows) = layout.tile_size, layout.grid(*image.size)
    whole = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for y in range(rows) for x in range(columns)
    ]
    if len(tiles) > 1 and layout.thumbnail:
        tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
    places = range(0, side - side % patch_size, patch_size)
    return np.stack(
        [
            [
                np.asarray(tile.crop((x, y, x + patch_size, y + patch_size))).reshape(-1)
                for y in places
                if y + patch_size <= side
                for x in places
                if x + patch_size <= side
            ]
            for tile in tiles
        ]
    )


@pytest.mark.parametrize("patch_size", [28, 14, 12, 7, 1])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (90, 60), (60, 91), (300, 20), (28, 28)])
def test_patches_are_the_tiles_cut_up(width, height, patch_size):
    data = encode(Image.fromarray(noise(width, height)))
    for layout in (LAYOUT, dataclasses.replace(LAYOUT, thumbnail=False)):
        expected = plainly(data, layout, patch_size)
        found = image_patches(data, "x", layout, patch_size)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(patchify(layout.cut_tiles(decode_image(data, "x")), patch_size), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK", "RGBA"])
def test_grey_pictures_stay_grey_without_a_change(mode):
    if mode == "I;16":
        image = Image.fromarray(noise(90, 60)[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise(90, 60)).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    assert decode_image(data, "x", keep_grey=True).mode == ("L" if mode in ("1", "L", "I;16") else "RGB")
    np.testing.assert_array_equal(image_patches(data, "x", LAYOUT, 14), plainly(data, LAYOUT, 14))


def test_patches_go_where_they_belong():
    data = encode(Image.fromarray(noise(90, 60)))
    expected = image_patches(data, "x", LAYOUT, 14)
    batch = np.full((2, 12, 4, 588), 7, np.uint8)
    part = batch[1, 3 : 3 + len(expected)]
    assert image_patches(data, "x", LAYOUT, 14, out=part) is part
    np.testing.assert_array_equal(part, expected)
    assert (batch[0] == 7).all()
    assert (batch[1, :3] == 7).all()
    assert (batch[1, 3 + len(expected) :] == 7).all()
    rng = np.random.default_rng
    drawn = patchify(reencode(LAYOUT.cut_tiles(decode_image(data, "x")), rng(3)), 14)
    assert (drawn != expected).any()
    np.testing.assert_array_equal(image_patches(data, "x", LAYOUT, 14, rng=rng(3)), drawn)
    assert image_patches(data, "x", LAYOUT, 14, out=part, rng=rng(3)) is part
    np.testing.assert_array_equal(part, drawn)


def test_a_place_of_another_size_is_an_error():
    data = encode(Image.fromarray(noise(90, 60)))
    with pytest.raises(UserError, match=r"^cat: its header and its pixels disagree about its size$"):
        image_patches(data, "cat", LAYOUT, 14, out=np.zeros((3, 4, 588), np.uint8))
    image = decode_image(data, "x")
    for out in (np.zeros((7, 4, 587), np.uint8), np.zeros((7, 4, 588), np.int8), np.zeros((7, 588, 4), np.uint8).mT):
        with pytest.raises(ValueError, match="out must be contiguous uint8 "):
            LAYOUT.cut_patches(image, 14, out)


def test_draft_keeps_the_grid_and_comes_near():
    draft = dataclasses.replace(LAYOUT, draft=True)
    exif = Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        for width, height in ((720, 480), (480, 720), (1000, 100), (171, 112), (40, 40)):
            data = encode(Image.fromarray(noise(width, height)), "JPEG", quality=95, exif=exif)
            exact, near = image_patches(data, "x", LAYOUT, 14), image_patches(data, "x", draft, 14)
            assert exact.shape == near.shape
            difference = np.abs(exact.astype(int) - near).mean()
            columns, rows = LAYOUT.grid(width, height)
            assert (difference > 0) == (width >= 2 * 28 * columns and height >= 2 * 28 * rows) or orientation > 4
            assert difference < 16, (orientation, width, height)  # of noise, whose neighbours differ by 85
    png = encode(Image.fromarray(noise(720, 480)))
    np.testing.assert_array_equal(image_patches(png, "x", LAYOUT, 14), image_patches(png, "x", draft, 14))


def test_draft_does_not_change_the_grid():
    """Half of this picture, rounded up, has another shape than the whole."""
    width, height = 60, 205
    half = (-(-width // 2), -(-height // 2))
    assert LAYOUT.grid(*half) != LAYOUT.grid(width, height)
    data = encode(Image.fromarray(noise(width, height)), "JPEG", quality=95)
    exact = image_patches(data, "x", LAYOUT, 14)
    near = image_patches(data, "x", dataclasses.replace(LAYOUT, draft=True), 14)
    assert exact.shape == near.shape
    assert 0 < np.abs(exact.astype(int) - near).mean() < 16


def test_draft_is_asked_for_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(noise(800, 400)), "JPEG", exif=exif)  # upright 400 x 800
    assert decode_image(data, "x", enough=(100, 200)).size == (100, 200)
    assert decode_image(data, "x", enough=(101, 200)).size == (200, 400)
    assert decode_image(data, "x", enough=(50, 400)).size == (200, 400)
    assert decode_image(data, "x").size == (400, 800)


def test_reducing_gap_comes_near():
    data = encode(Image.fromarray(noise(720, 480)))
    near = dataclasses.replace(LAYOUT, reducing_gap=2.0)
    difference = np.abs(image_patches(data, "x", LAYOUT, 14).astype(int) - image_patches(data, "x", near, 14))
    assert 0 < difference.mean() < 4
    for gap in (0.5, float("nan")):
        with pytest.raises(UserError, match=r"^layout\.reducing_gap: must be at least 1, or None"):
            dataclasses.replace(LAYOUT, reducing_gap=gap)


def test_both_options_are_off():
    assert (ClosestAspect().draft, ClosestAspect().reducing_gap) == (False, None)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (6000, 200), (200, 6000), (1, 3000)])
def test_extreme_shapes_become_an_example(preparer, width, height):
    data = encode(Image.new("RGB", (width, height), (10, 200, 30)), "JPEG", quality=100)
    conversation = Conversation((Turn("user", "<image>"), Turn("assistant", "!")), (data,), "x")
    example = preparer(conversation)
    assert preparer.measure(conversation).tiles == len(example.patches) >= 1
    np.testing.assert_allclose(
        example.patches.reshape(-1, 3), np.broadcast_to((10, 200, 30), (example.patches.size // 3, 3)), atol=2
    )


def test_bad_pictures_are_one_record_error(preparer):
    good = encode(Image.fromarray(noise(90, 60)))
    small = dataclasses.replace(preparer, max_megapixels=0.005)
    for use, data, said in (
        (preparer, b"", "the file is empty"),
        (preparer, good[: len(good) // 2], "truncated"),
        (small, good, "90 x 60 pixels are more than the limit of 0.005 megapixels"),
    ):
        reason = {b"": "empty file", good: "bomb"}.get(data, "image")
        conversation = Conversation((Turn("user", "<image><image>"), Turn("assistant", "!")), (good, data)[::-1], "x")
        with pytest.raises(RecordError, match=r"^record x: image 0: cannot read this image: .*" + said) as caught:
            use(conversation)
        assert (caught.value.reason, "\n" in str(caught.value)) == (reason, False)
        if use is small:
            with pytest.raises(RecordError, match=said):
                use.measure(conversation)
    for layout in (LAYOUT, dataclasses.replace(LAYOUT, draft=True)):
        with pytest.raises(UserError, match=r"limit of 0\.005 megapixels"):
            image_patches(good, "x", layout, 14, max_megapixels=0.005)
