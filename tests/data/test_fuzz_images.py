"""Damaged files of every format: an image or one `UserError`, soon, whatever the damage."""

import io
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from vlm_jax.data.images import decode_image, image_size
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.pixels import image_patches
from vlm_jax.errors import UserError

# pytest has its own rules for warnings; `test_images.py` sees to it that users do not see these.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LAYOUT = ClosestAspect(tile_size=28, max_tiles=6, draft=True)


def files():
    """Small files of the formats, with what they can hold: orientation, frames, transparency, compressions."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    palette = image.quantize(16)
    turned = image.rotate(180)
    kinds = {
        "PNG": (image, "PNG", {"exif": exif}),
        "APNG": (image, "PNG", {"save_all": True, "append_images": [turned]}),
        "PNG, palette": (palette, "PNG", {"transparency": bytes([0, 100, 200])}),
        "PNG, 16 bits": (Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG", {}),
        "JPEG": (image, "JPEG", {"exif": exif}),
        "JPEG, progressive": (image, "JPEG", {"progressive": True}),
        "JPEG, CMYK": (image.convert("CMYK"), "JPEG", {}),
        "GIF": (palette, "GIF", {"transparency": 3, "save_all": True, "append_images": [palette.rotate(180)]}),
        "WEBP": (image, "WEBP", {"exif": exif}),
        "WEBP, animated": (image, "WEBP", {"save_all": True, "append_images": [turned], "lossless": True}),
        "TIFF": (image, "TIFF", {"exif": exif}),
        "TIFF, LZW": (image, "TIFF", {"compression": "tiff_lzw"}),
        "TIFF, pages": (image, "TIFF", {"save_all": True, "append_images": [turned]}),
        "BMP": (image, "BMP", {}),
        "PPM": (image, "PPM", {}),
        "ICO": (image, "ICO", {}),
        "JPEG2000": (image, "JPEG2000", {}),
    }
    if features.check("avif"):
        kinds["AVIF"] = (image, "AVIF", {})
    found = {}
    for name, (picture, form, options) in kinds.items():
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        found[name] = stream.getvalue()
    return found


FILES = files()

# Headers are short and hold what matters, so half of all damage is done there.
PLACES = st.one_of(st.integers(0, 120), st.integers(0, 10_000))
DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("set"), PLACES, st.integers(0, 255)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("drop"), PLACES, st.integers(1, 9)),
        st.tuples(st.just("cut"), PLACES, st.just(0)),
    ),
    min_size=1,
    max_size=5,
)


def damage(data, damages):
    data = bytearray(data)
    for kind, place, value in damages:
        place %= len(data) or 1
        if kind == "flip" and data:
            data[place] ^= 1 << value
        elif kind == "set" and data:
            data[place] = value
        elif kind == "insert":
            data[place:place] = value
        elif kind == "drop":
            del data[place : place + value]
        elif kind == "cut":
            del data[place:]
    return bytes(data)


def outcome(use, *args):
    try:
        return use(*args)
    except UserError as error:
        said = str(error)
    assert said.startswith("x: ")
    assert "\n" not in said
    return None


def check(data):
    size, image = outcome(image_size, data, "x", 1.0), outcome(decode_image, data, "x", 1.0)
    if image is not None:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 1e6
        assert size is not None
    patches = outcome(lambda: image_patches(data, "x", LAYOUT, 14, max_megapixels=1.0))
    assert (patches is None) == (image is None)


def test_undamaged_files_are_read():
    for name, data in FILES.items():
        image = decode_image(data, name)
        assert image.size == image_size(data, name)
        assert np.asarray(image).std() > 30, name


# Deadlines are for hangs: one decoding takes a few milliseconds.
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=timedelta(seconds=10), suppress_health_check=[HealthCheck.too_slow])
@given(damages=DAMAGES)
def test_damaged_files(name, damages):
    check(damage(FILES[name], damages))


@settings(max_examples=200, deadline=timedelta(seconds=10))
@given(start=st.sampled_from([data[:length] for data in FILES.values() for length in (2, 4, 8, 12)]), rest=st.binary())
def test_any_bytes(start, rest):
    check(start + rest)
