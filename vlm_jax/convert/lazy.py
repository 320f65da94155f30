"""Arrays that stay in their file until somebody asks for them.

A folder's parameters are handed around as these, so that converting a model, or placing it on a mesh, holds one
parameter at a time, and a host reads the part of a parameter that its devices need (`vlm_jax.sharding.place`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import globs


class LazyArray:
    """An array to be: `np.asarray(lazy)` reads all of it, `lazy[index]` a part.

    Attributes:
      open: gives the array, unread where that is possible: a memory map, or a view of one.
      shape, dtype: known without reading.
    """

    def __init__(self, open: Callable[[], np.ndarray], shape: Sequence[int], dtype: Any) -> None:
        self.open, self.shape, self.dtype = open, tuple(shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.open(), dtype or self.dtype, order="C")

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self.open()[index], order="C")


def materialise(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested dict with everything read into memory."""
    return globs.unflatten({path: np.asarray(array) for path, array in globs.flatten(params).items()})
