"""Pictures for recipes that look at them: the files of a folder, or what the records of a data set show."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.root import Root, natural_order
from vlm_jax.data.images import DAMAGED, decode_image
from vlm_jax.data.recipes.items import read_item
from vlm_jax.data.recipes.written import store_image
from vlm_jax.data.sources import Source
from vlm_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif")
"""Of the files in a folder that are taken for pictures."""

_SENT = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}  # what servers know


class Picture(NamedTuple):
    """A picture in a file.

    Attributes:
      name: of its file, from a root folder.
      read: reads the file.
      place: what to call it in an error.
    """

    name: str
    read: Callable[[], bytes]
    place: str


def pictures_in(folder: Path) -> list[Picture]:
    """The pictures in a folder and those within, in the natural order of their names.

    Raises:
      UserError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"--images: {folder}: not a folder")
    names = []
    for path, _, files in os.walk(folder):
        names += [
            os.path.relpath(os.path.join(path, file), folder) for file in files if file.lower().endswith(SUFFIXES)
        ]
    if not names:
        raise UserError(f"--images: {folder}: no picture in it ({', '.join(SUFFIXES)})")
    return [_picture(folder, name) for name in sorted(names, key=natural_order)]


def _picture(folder: Path, name: str, place: str = "") -> Picture:
    place = place or str(folder / name)
    return Picture(name, lambda: Root(folder).read(name, place, "image"), place)


def pictures_of(
    source: Source, folder: Path, bad: Callable[[RecordError], None], advance: Callable[[], None]
) -> Iterator[Picture]:
    """The pictures that the records of a single source show, each once.

    Args:
      source: of an annotation file the pictures' own files are taken.
      folder: where pictures are stored that the source holds inside.
      bad: is told of records that cannot be read.
      advance: is called for every record.
    """
    seen = set()
    for number in range(len(source)):
        advance()
        try:
            if isinstance(source, AnnotationSource):
                item, place = read_item(source, number), source.place(number)
                found = [_picture(source.root, name, place) for name in item.images]
            else:
                conversation = source[number]
                names = [store_image(image, folder) for image in conversation.images]
                found = [_picture(folder, name, conversation.name) for name in names]
        except RecordError as error:
            bad(error)
            continue
        yield from (picture for picture in found if picture.name not in seen)
        seen |= {picture.name for picture in found}


def data_url(image: bytes, place: str, longest: int) -> str:
    """An image file as a `data:` URL for a server.

    Args:
      image: the file; it is sent as it is if servers know its format and it is not too large, otherwise as JPEG.
      place: what to call it in an error.
      longest: pixels that its longer side may have; 0 is no limit.

    Raises:
      RecordError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = _SENT.get(opened.format or "")
            fits = not longest or max(opened.size) <= longest
        if kind is None or not fits:
            decoded = decode_image(image, place)
            if not fits:
                decoded.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            decoded.save(file, "JPEG", quality=90)
            kind, image = "image/jpeg", file.getvalue()
    except DAMAGED as error:
        raise RecordError(place, "image", f"image: cannot be read: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise RecordError(place, getattr(error, "reason", "image"), str(error).removeprefix(f"{place}: ")) from None
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"
