import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.images import decode_image, image_size, to_rgb
from vlm_jax.errors import UserError


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixel(data, x=0, y=0):
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def test_orientation_is_applied_and_known_from_the_header():
    upright = Image.new("RGB", (4, 2), "black")
    upright.putpixel((0, 0), (255, 255, 255))
    for form in ("PNG", "JPEG", "WEBP", "TIFF"):
        for orientation, corner in ((1, (0, 0)), (3, (3, 1)), (6, (1, 0)), (8, (0, 3))):
            exif = Image.Exif()
            exif[0x0112] = orientation
            options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
            data = encode(upright, form, exif=exif, **options)
            image = decode_image(data, "x")
            assert image.size == image_size(data, "x") == ((2, 4) if orientation > 4 else (4, 2))
            brightest = np.asarray(image.convert("L")).argmax()
            assert (brightest % image.width, brightest // image.width) == corner


def test_an_opened_image_follows_the_same_rules():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encode(Image.new("RGB", (4, 2), "red"), "JPEG", exif=exif)))
    assert to_rgb(opened, "x").size == (2, 4)
    assert to_rgb(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "x").getpixel((1, 1)) == (255, 0, 0)
    with pytest.raises(UserError, match=r"^x: cannot read this image: its pixels are floats"):
        to_rgb(Image.new("F", (3, 3)), "x")


def test_transparency_is_composited_on_white():
    assert pixel(encode(Image.new("RGBA", (3, 3), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (3, 3), (0, 0, 0, 51)))) == (204, 204, 204)
    assert pixel(encode(Image.new("LA", (3, 3), (7, 0)))) == (255, 255, 255)
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(encode(palette)) == (40, 50, 60)
    assert pixel(encode(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encode(Image.new("RGB", (3, 3), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


def test_other_modes():
    assert pixel(encode(Image.fromarray(np.full((3, 3), 257 * 100, np.uint16)))) == (100, 100, 100)
    assert pixel(encode(Image.fromarray(np.full((3, 3), 65535, np.uint16)))) == (255, 255, 255)
    assert pixel(encode(Image.fromarray(np.full((3, 3), 257 * 9, np.uint16)), transparency=257 * 9)) == (255,) * 3
    assert pixel(encode(Image.new("1", (3, 3), 1))) == (255, 255, 255)
    assert pixel(encode(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "lime")]
    assert pixel(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)
    assert pixel(encode(frames[0], "PNG", save_all=True, append_images=frames[1:])) == (255, 0, 0)


def bomb():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encode(noise, form)
    decode_image(data, "x")
    with pytest.raises(UserError, match=r"^cat\.x: cannot read this image: \S"):
        decode_image(data[: len(data) // 2], "cat.x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "not an image"),
        (bomb(), "30000 x 30000 pixels are more than the limit of 200 megapixels"),
        (encode(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "floats"),
        (encode(Image.fromarray(np.full((3, 3), 70_000, np.int32)), "TIFF"), "32-bit integers"),
    ],
)
def test_unreadable_files_are_refused(data, reason):
    with pytest.raises(UserError) as error:
        decode_image(data, "a/b.png")
    assert str(error.value).startswith("a/b.png: cannot read this image: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_limit_is_an_argument_and_may_exceed_pillows_own(monkeypatch):
    data = encode(Image.new("RGB", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert decode_image(data, "x").size == (100, 100)
    assert Image.MAX_IMAGE_PIXELS == 50
    with pytest.raises(UserError, match=r"limit of 0\.005 megapixels"):
        decode_image(data, "x", max_megapixels=0.005)


def test_damaged_bytes_never_raise_anything_else(png):
    data = bytearray(png(30, 30))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            decode_image(bytes(damaged), "x")
        except UserError:
            refused += 1
    assert refused > 200
