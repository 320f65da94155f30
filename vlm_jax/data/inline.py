"""Pictures inside of a page: re-encoded, so that nothing but pixels of an untrusted file gets there."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_EXACT, _SMALL = 160, 64
"""Longer sides, in pixels: up to the first, pictures of few colours stay as they are, up to the second all do."""

_FEW_COLOURS = 512


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The picture with no side longer than `side` pixels."""
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller


def data_uri(image: Image.Image) -> str:
    """An RGB picture as an address: a PNG of small drawings, a JPEG of all else (a tenth as large)."""
    buffer = io.BytesIO()
    exact = max(image.size) <= _SMALL or (max(image.size) <= _EXACT and _few_colours(image))
    kind = "png" if exact else "jpeg"
    image.save(buffer, kind.upper(), **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _few_colours(image: Image.Image) -> bool:
    return len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) <= _FEW_COLOURS
