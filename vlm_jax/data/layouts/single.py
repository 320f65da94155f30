"""One tile an image: stretched to a square, padded to one with the mean colour, or cut out of the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from PIL import Image

from vlm_jax.config import config_class
from vlm_jax.data.layouts.layout import TileLayout, as_block, vector
from vlm_jax.errors import UserError

_ELONGATED = 8
"""Images whose sides have a larger ratio are not padded or resized as a whole, which would take memory without end."""


@config_class
class Single(TileLayout):
    """Layout of one tile.

    Attributes:
      tile_size: side of the tile in pixels.
      fit: "stretch" changes the aspect ratio (TinyLLaVA's SigLIP); "pad" makes the image square first, with `color`
        on both sides of it (LLaVA-1.5's `expand2square`); "crop" resizes the shorter side and keeps the middle (LLaVA,
        and `CLIPImageProcessor` of `transformers`). All with Pillow's bicubic filter.
      wrapped: a learned vector stands before the visual tokens and another behind them (the `<im_start>` and `<im_end>`
        of LLaVA's first versions and of LLaVAR, which have an embedding and nothing else in common with words).
      color: of the padding, red, green and blue in 0..255. The default is CLIP's mean, rounded down as LLaVA does.
    """

    type: Literal["single"] = "single"
    tile_size: int = 336
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    wrapped: bool = False
    color: tuple[int, int, int] = (122, 116, 104)

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise UserError(f"layout.tile_size: must be positive, got {self.tile_size}")
        if not all(0 <= value <= 255 for value in self.color):
            raise UserError(f"layout.color: must be three numbers in 0..255, got {self.color}")

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Always one tile."""
        return 1, 1

    def tiles(self, width: int, height: int) -> int:
        """Always one."""
        return 1

    @property
    def limit_is(self) -> str:
        """See `Layout.limit_is`."""
        return "one tile a picture"

    @property
    def vectors(self) -> tuple[str, ...]:
        """What stands around the tile's tokens, where it is wrapped."""
        return ("begin", "end") if self.wrapped else ()

    def place(self, width: int, height: int, tokens_per_tile: int) -> np.ndarray:
        """The tile's tokens, wrapped or not (see `Layout.place`)."""
        tokens = super().place(width, height, tokens_per_tile)
        around = np.array([vector(0), vector(1)], np.int32)
        return np.concatenate([around[:1], tokens, around[1:]]) if self.wrapped else tokens

    def blocks(self, image: Image.Image, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The tile."""
        yield as_block(_FITS[self.fit](image, self), 1, 1)


def _stretched(image: Image.Image, layout: Single) -> Image.Image:
    return image.resize((layout.tile_size, layout.tile_size), Image.Resampling.BICUBIC)


def _padded(image: Image.Image, layout: Single) -> Image.Image:
    """Made square, then resized; what is very long is resized first, so that no huge square is ever held."""
    side, longer = layout.tile_size, max(image.size)
    if longer > _ELONGATED * min(image.size):
        size = tuple(max(1, round(length * side / longer)) for length in image.size)
        return _squared(image.resize(size, Image.Resampling.BICUBIC), layout)
    return _stretched(_squared(image, layout), layout)


def _squared(image: Image.Image, layout: Single) -> Image.Image:
    width, height = image.size
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), layout.color)
    square.paste(image, ((longer - width) // 2, (longer - height) // 2))
    return square


def _cropped(image: Image.Image, layout: Single) -> Image.Image:
    """The middle of the image, its shorter side made the tile's; of a long image the rest is never computed."""
    side = layout.tile_size
    shorter, longer = min(image.size), max(image.size)
    size = tuple(side if length == shorter else int(side * length / shorter) for length in image.size)
    corner = tuple((length - side) // 2 for length in size)
    if longer <= _ELONGATED * shorter:
        whole = image.resize(size, Image.Resampling.BICUBIC)
        return whole.crop((*corner, corner[0] + side, corner[1] + side))
    scales = [old / new for old, new in zip(image.size, size, strict=True)]
    first = [start * scale for start, scale in zip(corner, scales, strict=True)]
    last = [(start + side) * scale for start, scale in zip(corner, scales, strict=True)]
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(*first, *last))


_FITS: dict[str, Callable[[Image.Image, Single], Image.Image]] = {
    "stretch": _stretched,
    "pad": _padded,
    "crop": _cropped,
}
