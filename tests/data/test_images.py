import io
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, features

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


def png_file(width, height, depth, colour, rows):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_file(width, height, samples, bits, photometric, pixels):
    """An uncompressed little-endian TIFF of one strip."""
    count = 9
    beyond = 8 + 2 + count * 12 + 4
    tags = [
        (256, 3, 1, width), (257, 3, 1, height),
        (258, 3, samples, bits if samples == 1 else beyond), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, beyond + 2 * samples), (277, 3, 1, samples), (278, 3, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, count) + entries + struct.pack("<I", 0)
    return head + struct.pack("<H", bits) * samples + pixels


def test_16_bit_colour_keeps_its_upper_bits():
    values = (0x1234, 0xFFFF, 0x80FF)
    for order, data in (
        (">", png_file(2, 1, 16, 2, b"\0" + struct.pack(">6H", *values * 2))),
        ("<", tiff_file(2, 1, 3, 16, 2, struct.pack("<6H", *values * 2))),
    ):
        assert pixel(data, 1) == (0x12, 0xFF, 0x80), order
    # With alpha: composited on white after that.
    assert pixel(png_file(1, 1, 16, 6, b"\0" + struct.pack(">4H", *values, 0xFFFF))) == (0x12, 0xFF, 0x80)
    assert pixel(png_file(1, 1, 16, 6, b"\0" + struct.pack(">4H", *values, 0))) == (255, 255, 255)
    assert pixel(png_file(1, 1, 16, 4, b"\0" + struct.pack(">2H", 0x1234, 0))) == (255, 255, 255)
    # 16-bit grey is scaled.
    grey = 257 * 100 + 128
    assert pixel(png_file(1, 1, 16, 0, b"\0" + struct.pack(">H", grey))) == (100, 100, 100)
    assert pixel(png_file(1, 1, 16, 0, b"\0" + struct.pack(">H", grey + 1))) == (101, 101, 101)
    assert pixel(tiff_file(1, 1, 1, 16, 1, struct.pack("<H", grey + 1))) == (101, 101, 101)


def test_cmyk_jpeg_is_inverted_as_adobe_writes_it():
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    np.testing.assert_allclose(pixel(data, 8, 8), (255, 0, 0), atol=3)
    np.testing.assert_allclose(
        pixel(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 128)), "JPEG", quality=100)), (127, 127, 127), atol=3
    )


def test_palettes_with_alpha():
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([0, 0, 0, 0, 0, 0, 40, 50, 60])
    data = encode(palette, transparency=bytes([0, 51, 255]))
    assert [pixel(data, x) for x in range(3)] == [(255, 255, 255), (204, 204, 204), (40, 50, 60)]
    gif = encode(palette, "GIF", transparency=2)
    assert [pixel(gif, x) for x in (0, 2)] == [(0, 0, 0), (255, 255, 255)]


def test_first_frame_of_an_animation_and_first_page():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    for form, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 2
        assert pixel(data) == (255, 0, 0), form


def test_one_bit():
    for form, options in (("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {}), ("PPM", {})):
        image = Image.new("1", (9, 3), 1)
        image.putpixel((4, 1), 0)
        data = encode(image, form, **options)
        assert (pixel(data, 4, 1), pixel(data, 5, 1)) == ((0, 0, 0), (255, 255, 255)), form


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_or_refused():
    data = bytearray(encode(Image.new("RGB", (16, 16), (255, 0, 0)), "AVIF"))
    np.testing.assert_allclose(pixel(bytes(data), 8, 8), (255, 0, 0), atol=4)
    refused = 0
    for place in range(len(data)):
        damaged = data.copy()
        damaged[place] ^= 0x55
        for use in (decode_image, image_size):
            try:
                use(bytes(damaged), "x")
            except UserError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a HEIC picture, a format that is not read; save it as "),
        (b'\xef\xbb\xbf\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing, which has no pixels"),
        (b'<?xml version="1.0"?><svg/>', "an XML file (an SVG drawing?)"),
        (b"<!DOCTYPE HTML><title>Not found</title>", "a web page, not an image (a download that failed?)"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "a PostScript file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS, not the file itself"),
        (b"\0" * 400, "not an image, or none of the formats that are read (PNG, JPEG, "),
    ],
)
def test_what_is_no_image_is_told_apart(data, reason):
    for use in (decode_image, image_size):
        with pytest.raises(UserError) as error:
            use(data, "a.jpg")
        assert str(error.value).startswith(f"a.jpg: cannot read this image: {reason}")
        assert "\n" not in str(error.value)


def test_pillows_remarks_do_not_reach_the_terminal():
    """In a process of its own, as pytest has its own rules for warnings."""
    script = """
        import io
        from PIL import Image
        from vlm_jax.data.images import decode_image, image_size
        from vlm_jax.errors import UserError

        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        for form in ("JPEG", "PNG", "WEBP"):
            file = io.BytesIO()
            Image.new("RGB", (20, 30)).save(file, form, exif=exif)
            data = file.getvalue()
            place = data.index(b"MM\\0*") if b"MM\\0*" in data else data.index(b"II*\\0")
            for end in range(place, place + 40):
                damaged = data[: end] + bytes(255 - b for b in data[end : end + 3]) + data[end + 3 :]
                for use in (decode_image, image_size):
                    try:
                        use(damaged, "x")
                    except UserError:
                        pass
        print("done")
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def bomb():
    return png_file(30_000, 30_000, 8, 2, bytes(100))


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
