"""Encoded image files to 8-bit RGB, by stated rules and with one clear error for anything unreadable.

Rules: the EXIF (or XMP) orientation is applied; of an animation, or of several pages, the first counts; transparency is
composited on white; 16-bit grey is scaled to 8 bits (v / 257, rounded), of 16-bit colour Pillow keeps the upper 8 bits;
CMYK in a JPEG is taken as inverted, as Adobe writes it; every other mode is converted by Pillow; colour profiles do not
count. Images whose pixels have no defined white (floats, 32-bit integers beyond 65535) are refused rather than guessed
at, and so is every format that is not in `FORMATS`.
"""

from __future__ import annotations

import functools
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlm_jax.data.conversation import Reason
from vlm_jax.errors import UserError

MAX_MEGAPIXELS = 200.0
"""Images with more pixels than this are refused before they are decoded (decompression bombs)."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "ICO")
"""What is read, where Pillow has it. Not all that Pillow knows: for EPS it starts another program, for instance."""

DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's plugins are known to raise on damaged files."""

# Keywords of PNG text chunks that can hold an orientation.
_PNG_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# Files that people take for images, by what they begin with, for the error message.
_NO_IMAGES = (
    (b"<!doctype html", "a web page, not an image (a download that failed?)"),
    (b"<html", "a web page, not an image (a download that failed?)"),
    (b"<?xml", "an XML file (an SVG drawing?), which has no pixels; save it as PNG"),
    (b"<svg", "an SVG drawing, which has no pixels; save it as PNG"),
    (b"%pdf", "a PDF document; save its pages as PNG or JPEG"),
    (b"%!ps", "a PostScript file; save it as PNG or JPEG"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run `git lfs pull`"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_open_lock = threading.Lock()

# What is wrong with a picture is an error of ours or does not matter; Pillow's remarks on damaged EXIF and TIFF tags
# come by the thousand. They are switched off once and for all, because `catch_warnings` does not work in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
      reason: under which its record counts.
    """

    def __init__(self, message: str, reason: Reason = "image") -> None:
        super().__init__(message)
        self.reason: Reason = reason


class _RefusedError(ValueError):
    """What is wrong with a file that nobody tried to decode."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.counted: Reason = reason


def decode_image(
    data: bytes,
    name: str,
    max_megapixels: float = MAX_MEGAPIXELS,
    *,
    keep_grey: bool = False,
    enough: tuple[int, int] | None = None,
) -> Image.Image:
    """Decodes one image file.

    Args:
      data: the file's bytes, in one of `FORMATS`.
      name: what to call the image in an error (a path, or the record and the image's number).
      max_megapixels: limit on width * height / 1e6.
      keep_grey: what has no colour stays in mode L, which Pillow resizes twice as fast, with the same result.
      enough: width and height that suffice. A JPEG that is at least twice as large both ways is decoded at the
        smallest of 1/2, 1/4 and 1/8 of its size that is not below them, which is quick and changes pixels.

    Returns:
      An upright image of mode RGB (or L).

    Raises:
      UserError: `name: cannot read this image: reason`.
    """
    with _reading(name), _opened(data, max_megapixels) as image:
        if enough is not None and image.format in ("JPEG", "MPO"):
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
            image.draft(None, enough[::-1] if turned else enough)
        image.load()
        if _may_be_rotated(image, data):
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, keep_grey)


def image_size(data: bytes, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Width and height in pixels of `decode_image`'s result, from the file's header where the format allows it.

    Raises:
      UserError: `name: cannot read this image: reason`. Damage beyond the header goes unnoticed here.
    """
    with _reading(name), _opened(data, max_megapixels) as image:
        width, height = image.size
        turned = image.format != "TIFF"  # of a TIFF Pillow turns the size itself
        if turned and _may_be_rotated(image, data) and image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED:
            return height, width
        return width, height


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image that somebody has opened already, by the same rules as `decode_image`.

    Raises:
      UserError: `name: cannot read this image: reason`.
    """
    with _reading(name):
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises on a bad file into one `UserError`."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        counted = error.counted if isinstance(error, _RefusedError) else "image"
        raise ImageError(f"{name}: cannot read this image: {reason}", counted) from None


@contextmanager
def _opened(data: bytes, max_megapixels: float) -> Iterator[Image.Image]:
    """Opens the file (header only) and checks its size against our limit."""
    if not data:
        raise _RefusedError("the file is empty", "empty file")
    with _open_lock:  # Pillow's own limit is a global of the process; ours is an argument and may lie above it
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=_known_formats())
        except Image.UnidentifiedImageError:
            raise ValueError(_what_it_is(data)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"it has no pixels ({width} x {height})")
        if width * height > max_megapixels * 1e6:
            limit = f"the limit of {max_megapixels:g} megapixels"
            raise _RefusedError(f"{width} x {height} pixels are more than {limit}", "bomb")
        yield image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _what_it_is(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "a HEIC picture, a format that is not read; save it as JPEG or PNG"
    beginning = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in _NO_IMAGES:
        if beginning.startswith(start):
            return what
    return f"not an image, or none of the formats that are read ({', '.join(_known_formats())})"


def _may_be_rotated(image: Image.Image, data: bytes) -> bool:
    """False if there can be no orientation: asking Pillow for that of a PNG without one decodes the whole image."""
    if image.format != "PNG":
        return True
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"eXIf" or (kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(_PNG_KEYWORDS, place + 8)):
            return True
        if kind == b"IEND":
            return False
        place += length + 12  # length, kind, body, checksum
    return False


def _to_rgb(image: Image.Image, keep_grey: bool = False) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose white is not defined; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    wanted = "L" if keep_grey and image.mode in ("1", "L") else "RGB"
    return image if image.mode == wanted else image.convert(wanted)  # which would copy it


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are 32-bit integers, whose white is not defined; save it with 8 or 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG may name one grey value that counts as transparent
        grey[values == transparent] = 255
    return Image.fromarray(grey)
