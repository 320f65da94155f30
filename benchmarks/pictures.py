"""Pictures for the benchmarks: JPEG files, made of photographs that come with scikit-image and scikit-learn."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image


@functools.cache
def photographs() -> tuple[Image.Image, ...]:
    """Six photographs, RGB."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = (
        load_sample_image("china.jpg"),
        data.coffee(),
        data.astronaut(),
        load_sample_image("flower.jpg"),
        data.chelsea(),
        data.rocket(),
    )
    return tuple(Image.fromarray(np.ascontiguousarray(array)) for array in arrays)


def photo(width: int, height: int, number: int = 0) -> bytes:
    """A JPEG of one of the photographs, at quality 90."""
    pictures = photographs()
    return encoded(
        pictures[number % len(pictures)].resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90
    )


def document(number: int = 0, grey: bool = True) -> bytes:
    """A page of A4 at 150 dots an inch: lines of a printed book, as a grey JPEG, or as one in colour (yellowed)."""
    from skimage import data

    lines = Image.fromarray(data.page())  # 384 x 191
    page = Image.new("L", (1240, 1754), 235)
    for row in range(6):
        strip = lines.crop((0, (row + number) % 3, 384, 188)).resize((1140, 270), Image.Resampling.BICUBIC)
        page.paste(strip, (50, 40 + 280 * row))
    if not grey:
        page = Image.merge("RGB", (page, page.point(lambda v: v * 0.96), page.point(lambda v: v * 0.85)))
    return encoded(page, "JPEG", quality=85)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The image as a file of that format."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
