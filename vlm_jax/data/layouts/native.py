"""Native raster (Fuyu): an image at its own size, patch by patch, with a token of the vocabulary behind every row.

Sources: `models/fuyu/{image_processing,processing}_fuyu.py` of `transformers`; OtterHD's resolutions:
`pipeline/mimicit_utils/mimicit_dataset.py` of Luodian/Otter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Literal, Self

import numpy as np
from PIL import Image

from vlm_jax.config import config_class
from vlm_jax.data.layouts.layout import ROW_TOKEN, Change, Layout
from vlm_jax.data.layouts.patches import patchify, unpatchify
from vlm_jax.errors import UserError

_BEHIND = 1
"""Value of the pixels that fill the last patches right and below of an image (Fuyu's padding of 1.0, on bytes)."""


@config_class
class NativeRaster(Layout):
    """Layout of all patches of an image in raster order; a slot of the batch holds so many of them.

    Attributes:
      patch_size: side of a patch in pixels.
      max_width, max_height: in pixels; a larger image is shrunk to fit (bilinear, aspect kept), a smaller one stays.
      slot: patches of a tile slot. Slots follow one another; the last of an image is filled up with nothing.
      side: in place of its own size every image gets this one, a square of so many pixels: it is enlarged or shrunk,
        and stretched (bicubic). So OtterHD is trained at one resolution.
      sides: in training, `side` is drawn from these (OtterHD's `--dynamic_resolution`, from 448, 512 and 768). Otter
        draws one for every batch. Here a conversation's id decides, once and for all: rows are planned from sizes that
        were measured beforehand, so what is drawn has to be the same whenever and wherever a record is looked at.
    """

    type: Literal["native_raster"] = "native_raster"
    patch_size: int = 30
    max_width: int = 1920
    max_height: int = 1080
    slot: int = 64
    side: int | None = None
    sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("patch_size", "max_width", "max_height", "slot"):
            if getattr(self, name) < 1:
                raise UserError(f"layout.{name}: must be positive, got {getattr(self, name)}")
        most = min(self.max_width, self.max_height)
        for name, sides in (("side", () if self.side is None else (self.side,)), ("sides", self.sides)):
            if not all(1 <= side <= most for side in sides):
                raise UserError(
                    f"layout.{name}: must lie in 1..{most} (max_width and max_height), got {', '.join(map(str, sides))}"
                )

    def check(self, image_size: int | None, patch_size: int, patches: int) -> None:
        """The encoder must take patches one by one (see `Layout.check`)."""
        if image_size is not None or (patch_size, patches) != (self.patch_size, self.slot):
            raise UserError(
                f"config.system.layout has patches of {self.patch_size} px in slots of {self.slot}; "
                f"config.system.model.vision must be a patch_projection with the same patch_size and patches"
            )

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Always one picture."""
        return 1, 1

    def raster(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of patches of an image."""
        width, height = self._fitted(width, height)
        return math.ceil(width / self.patch_size), math.ceil(height / self.patch_size)

    def tiles(self, width: int, height: int) -> int:
        """Slots that hold all patches."""
        return math.ceil(math.prod(self.raster(width, height)) / self.slot)

    def patches(self, patch_size: int) -> int:
        """Those of a slot."""
        return self.slot

    def patch_grids(self, width: int, height: int, patch_size: int) -> np.ndarray:
        """One row of as many patches as a slot holds, int32 [k, 2]."""
        count = math.prod(self.raster(width, height))
        ends = np.minimum(self.slot * np.arange(1, self.tiles(width, height) + 1), count)
        return np.stack([np.ones_like(ends), np.diff(ends, prepend=0)], axis=1).astype(np.int32)

    def place(self, width: int, height: int, tokens_per_tile: int) -> np.ndarray:
        """Every patch in raster order, `ROW_TOKEN` behind every row (see `Layout.place`)."""
        columns, rows = self.raster(width, height)
        patches = np.arange(columns * rows, dtype=np.int32).reshape(rows, columns)
        return np.pad(patches, ((0, 0), (0, 1)), constant_values=ROW_TOKEN).ravel()

    def fill(
        self, out: np.ndarray, image: Image.Image, size: tuple[int, int], patch_size: int, change: Change | None
    ) -> None:
        """Patch after patch, and zeros to the end of the last slot (see `Layout.fill`)."""
        canvas = self._canvas(image, size)[None]
        patches = patchify(canvas if change is None else change(canvas), patch_size)[0]
        flat = out.reshape(-1, out.shape[-1])
        flat[: len(patches)], flat[len(patches) :] = patches, 0

    def resized(self, side: int) -> Self:
        """The layout for images of at most `side` pixels both ways, none of which is enlarged; nothing is drawn."""
        return dataclasses.replace(self, max_width=side, max_height=side, side=None, sides=())

    def drawn(self, key: str) -> Self:
        """With the one of `sides` that the key's SHA-256 falls on."""
        if not self.sides:
            return self
        number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return dataclasses.replace(self, side=self.sides[number % len(self.sides)], sides=())

    def settled(self) -> Self:
        """Without `sides`."""
        return dataclasses.replace(self, sides=())

    @property
    def slots_are(self) -> str:
        """See `Layout.slots_are`."""
        return f"slots of {self.slot} patches of {self.patch_size} px"

    @property
    def limit_is(self) -> str:
        """See `Layout.limit_is`."""
        if self.sides:
            return f"pictures stretched to a square of {' or '.join(map(str, self.sides))} px"
        if self.side is not None:
            return f"pictures stretched to a square of {self.side} px"
        return f"pictures of at most {self.max_width} × {self.max_height} px"

    def pictures(self, patches: np.ndarray, size: tuple[int, int], patch_size: int) -> list[np.ndarray]:
        """The one picture, with what fills its last patches (see `Layout.pictures`)."""
        columns, rows = self.raster(*size)
        flat = patches.reshape(1, -1, patches.shape[-1])[:, : columns * rows]
        return list(unpatchify(flat, (rows, columns), patch_size))

    def views(self, image: Image.Image) -> list[np.ndarray]:
        """The one picture."""
        return [self._canvas(image, image.size)]

    def _canvas(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """uint8 [rows * P, columns * P, 3]."""
        columns, rows = self.raster(*size)
        canvas = np.full((rows * self.patch_size, columns * self.patch_size, 3), _BEHIND, np.uint8)
        fitted = self._fitted(*size)
        resample = Image.Resampling.BILINEAR if self.side is None else Image.Resampling.BICUBIC
        resized = image if image.size == fitted else image.resize(fitted, resample)
        canvas[: fitted[1], : fitted[0]] = np.asarray(resized.convert("RGB"))
        return canvas

    def _fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image gets."""
        if self.side is not None:
            return self.side, self.side
        if width <= self.max_width and height <= self.max_height:
            return width, height
        scale = min(self.max_height / height, self.max_width / width)
        return max(1, int(width * scale)), max(1, int(height * scale))
