"""What an image layout is: sizes in, tiles and the order of their visual tokens out.

A layout decides on the host; what reaches the device has fixed shapes. The sequence of an image's tokens is written as
one integer each: a visual token's index, `ROW_TOKEN` or `vector(v)`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
from PIL import Image

from vlm_jax.data.layouts.patches import patchify, unpatchify, write_patches
from vlm_jax.errors import UserError

Change = Callable[[np.ndarray], np.ndarray]
"""Pixels to pixels, uint8 [k, height, width, 3]."""

ROW_TOKEN = -1
"""In a placement: the token of the vocabulary that ends a row of patches (`Template.row_token`)."""


def vector(number: int) -> int:
    """In a placement: the model's learned vector of this number (`VLMConfig.vectors`)."""
    return -2 - number


class Layout(abc.ABC):
    """A rule by which an image of any size becomes k tile slots of N patches each, and a sequence of tokens.

    Subclasses are config classes with a `type`.

    Attributes:
      draft: a JPEG that is much larger than needed may be decoded at 1/2, 1/4 or 1/8 of its size.
    """

    draft: bool = False

    @abc.abstractmethod
    def check(self, image_size: int | None, patch_size: int, patches: int) -> None:
        """Refuses an encoder that it does not fit.

        Args:
          image_size: side of the encoder's tiles in pixels; None where it has no such thing.
          patch_size: side of its patches.
          patches: that it takes at a time (N).

        Raises:
          UserError: naming the fields that differ.
        """

    @abc.abstractmethod
    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of tiles that an image of so many pixels is cut into; a view of the whole does not count."""

    @abc.abstractmethod
    def tiles(self, width: int, height: int) -> int:
        """Number of tile slots of an image (k), views of the whole included."""

    @abc.abstractmethod
    def patches(self, patch_size: int) -> int:
        """Patches of a tile slot (N)."""

    @abc.abstractmethod
    def patch_grids(self, width: int, height: int, patch_size: int) -> np.ndarray:
        """Patches down and across in every slot of an image, int32 [k, 2]."""

    def cut_patches(
        self,
        image: Image.Image,
        patch_size: int,
        out: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        change: Change | None = None,
    ) -> np.ndarray:
        """Cuts an image into tiles, and these into patches.

        Args:
          image: of mode RGB or L.
          patch_size: P, side of a patch in pixels.
          out: uint8 [k, N, P*P*3], contiguous, where the patches are written; a new array when None.
          size: width and height by which the tiles are chosen; the image's own when None.
          change: what is done to pixels, uint8 [k, height, width, 3], before they become patches (augmentation).

        Returns:
          uint8 [k, N, P*P*3]: `out`, if it was given.

        Raises:
          ValueError: `out` has another shape, or cannot be written to so.
        """
        size = size or image.size
        out = _writable(out, (self.tiles(*size), self.patches(patch_size), patch_size**2 * 3))
        self.fill(out, image, size, patch_size, change)
        return out

    @abc.abstractmethod
    def fill(
        self, out: np.ndarray, image: Image.Image, size: tuple[int, int], patch_size: int, change: Change | None
    ) -> None:
        """Writes every element of `out`, uint8 [k, N, P*P*3] with anything in it, for `cut_patches` (see there)."""

    @abc.abstractmethod
    def pictures(self, patches: np.ndarray, size: tuple[int, int], patch_size: int) -> list[np.ndarray]:
        """Patches of an image as pictures again, for people to look at.

        Args:
          patches: uint8 [k, N, P*P*3] of `cut_patches`.
          size: width and height of the image in pixels.
          patch_size: P.

        Returns:
          uint8 [height, width, 3] each: the tiles of the grid in row-major order, then a view of the whole, if any.
        """

    @abc.abstractmethod
    def views(self, image: Image.Image) -> list[np.ndarray]:
        """What of an image the model sees, as `pictures`."""

    def place(self, width: int, height: int, tokens_per_tile: int) -> np.ndarray:
        """The tokens that stand for an image, in order.

        Args:
          width, height: of the image in pixels.
          tokens_per_tile: n, visual tokens that the connector makes of one tile.

        Returns:
          int32 [t]: an index into the image's k*n visual tokens, `ROW_TOKEN`, or `vector(v)`. Here all visual tokens
          in the order of the tiles, and nothing else.
        """
        return np.arange(self.tiles(width, height) * tokens_per_tile, dtype=np.int32)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the learned vectors that its placements hold, in the order of their numbers."""
        return ()

    def among(self, images: int) -> Self:
        """The layout of each of `images` of one conversation, where they share a budget; else the layout itself."""
        del images
        return self

    def at_most(self, tiles: int) -> Self:
        """The layout with a budget of so many tiles an image; the layout itself where it has no choice."""
        del tiles
        return self

    @abc.abstractmethod
    def resized(self, side: int) -> Self:
        """The layout for tiles of `side` pixels."""

    def drawn(self, key: str) -> Self:
        """The layout of one conversation in training, where something is drawn: a pure function of the key.

        Args:
          key: the conversation's id.
        """
        del key
        return self

    def settled(self) -> Self:
        """The layout outside of training, where nothing is drawn."""
        return self

    @property
    @abc.abstractmethod
    def slots_are(self) -> str:
        """What a tile slot holds, in words: "tiles of 448 px"."""

    @property
    @abc.abstractmethod
    def limit_is(self) -> str:
        """What limits a picture, in words: "at most 12 tiles a picture"."""

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels that suffice of an image of this size, where `draft` allows fewer."""
        return width, height


class TileLayout(Layout):
    """A layout whose slots are square tiles of pixels.

    Attributes:
      tile_size: S, side of a tile in pixels.
    """

    tile_size: int

    def check(self, image_size: int | None, patch_size: int, patches: int) -> None:
        """The encoder's tiles must be as large (see `Layout.check`)."""
        if self.tile_size != image_size:
            raise UserError(
                f"config.system.layout.tile_size is {self.tile_size}, "
                f"config.system.model.vision.image_size is {image_size}: they must be equal"
            )

    def patches(self, patch_size: int) -> int:
        """All whole patches of a tile."""
        return (self.tile_size // patch_size) ** 2

    def patch_grids(self, width: int, height: int, patch_size: int) -> np.ndarray:
        """The same for every tile, int32 [k, 2]."""
        return np.full((self.tiles(width, height), 2), self.tile_size // patch_size, np.int32)

    @abc.abstractmethod
    def blocks(self, image: Image.Image, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The image's tiles, as blocks of such that stand together: uint8 [rows, S, columns, S, 3] each.

        Args:
          image: of mode RGB or L.
          size: width and height by which the grid is chosen.
        """

    def fill(
        self, out: np.ndarray, image: Image.Image, size: tuple[int, int], patch_size: int, change: Change | None
    ) -> None:
        """Every pixel is written once, where nothing is changed (see `Layout.fill`)."""
        if change is not None:
            out[:] = patchify(change(self.cut_tiles(image, size)), patch_size)
            return
        start = 0
        for pixels in self.blocks(image, size):
            rows, _, columns = pixels.shape[:3]
            part = out[start : start + rows * columns]
            write_patches(pixels, part.reshape(rows, columns, *out.shape[1:]), patch_size)
            start += rows * columns

    def cut_tiles(self, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
        """The tiles of an image as pixels, uint8 [k, S, S, 3] (arguments as `cut_patches`)."""
        return self.cut_patches(image, self.tile_size, size=size).reshape(-1, self.tile_size, self.tile_size, 3)

    def resized(self, side: int) -> Self:
        """The layout with another `tile_size`."""
        return dataclasses.replace(self, tile_size=side)

    @property
    def slots_are(self) -> str:
        """See `Layout.slots_are`."""
        return f"tiles of {self.tile_size} px"

    def pictures(self, patches: np.ndarray, size: tuple[int, int], patch_size: int) -> list[np.ndarray]:
        """The tiles (see `Layout.pictures`)."""
        side = self.tile_size // patch_size
        return list(unpatchify(patches, (side, side), patch_size))

    def views(self, image: Image.Image) -> list[np.ndarray]:
        """The tiles."""
        return self.pictures(self.cut_patches(image, self.tile_size), image.size, self.tile_size)


def token_side(tokens_per_tile: int) -> int:
    """Visual tokens along a side of a tile, for layouts that look at tiles as maps.

    Raises:
      UserError: they are no square.
    """
    side = math.isqrt(tokens_per_tile)
    if side**2 != tokens_per_tile:
        raise UserError(f"config.system.layout: {tokens_per_tile} visual tokens a tile are no square map")
    return side


def _writable(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`out` if it can take uint8 of this shape, a new array where it is None.

    Raises:
      ValueError: it cannot.
    """
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 {shape}, but is {out.dtype} {out.shape}")
    return out


def as_block(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The pixels of an image as a block of tiles: uint8 [rows, height / rows, columns, width / columns, 3]."""
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    height, width = pixels.shape[:2]
    return pixels.reshape(rows, height // rows, columns, width // columns, 3)
