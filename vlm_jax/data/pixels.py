"""One image file to its patches: decoded, stretched to its grid, cut, and laid out as the batch holds them."""

from __future__ import annotations

import functools

import numpy as np

from vlm_jax.data.augment import reencode
from vlm_jax.data.images import MAX_MEGAPIXELS, decode_image, image_size
from vlm_jax.data.layouts.layout import Layout
from vlm_jax.errors import UserError


def image_patches(
    data: bytes,
    name: str,
    layout: Layout,
    patch_size: int,
    *,
    out: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> np.ndarray:
    """Reads the tiles of one image as patches.

    Args:
      data: the file's bytes.
      name: what to call the image in an error.
      layout: how it becomes tiles.
      patch_size: P, side of a patch in pixels.
      out: uint8 [K, N, P*P*3], contiguous, where the patches are written (a part of a batch, say); a new array when
        None. After an error it holds anything.
      rng: draws JPEG's losses for every tile (`reencode`); None leaves the tiles as they are.
      max_megapixels: limit on width * height / 1e6.

    Returns:
      uint8 [K, N, P*P*3]: `out`, if it was given.

    Raises:
      UserError: `name: cannot read this image: reason`; or it has another number of tiles than `out`.
    """
    _keep_freed_memory()
    size = enough = None
    if layout.draft:  # the grid is that of the size in the file, whatever is decoded
        size = image_size(data, name, max_megapixels)
        enough = layout.enough(*size)
    image = decode_image(data, name, max_megapixels, keep_grey=True, enough=enough)
    if out is not None and len(out) != layout.tiles(*(size or image.size)):
        raise UserError(f"{name}: its header and its pixels disagree about its size")
    change = None if rng is None else functools.partial(reencode, rng=rng)
    return layout.cut_patches(image, patch_size, out, size, change)


@functools.cache
def _keep_freed_memory() -> None:
    """Keeps the pages of one image for the next, instead of asking the system for new ones every time.

    C libraries map large blocks one by one and unmap them when they are freed, so that every page costs a fault anew: a
    twentieth of an image's time, on virtual machines up to a quarter. glibc stops doing so for blocks up to the size of
    the largest that was ever freed, but not above 32 MiB; so one of nearly that size is freed here, which was never
    written to and never took memory. Elsewhere this does nothing.
    """
    np.empty(32 * 2**20 - 2**16, np.uint8)
