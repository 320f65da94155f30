"""Sizes, fonts and colours that the drawing code of all tasks shares."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

TILE = 64
"""Side of the pocket model's tiles in pixels. Pictures are drawn for this size, so that a reader of tiles can read."""

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
)
"""TrueType fonts that matplotlib ships."""

Grid = tuple[int, int]
"""Tiles across and down."""

ONE_TILE: Mapping[Grid, float] = {(1, 1): 1.0}
"""Layouts of the pictures that training begins with."""

Color = tuple[int, int, int]


def pick(rng: np.random.Generator, weights: Mapping[Any, float]) -> Any:
    """One key of `weights`, with probability in proportion to its value."""
    keys = list(weights)
    shares = np.asarray([weights[key] for key in keys], float)
    return keys[rng.choice(len(keys), p=shares / shares.sum())]


def choose(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """One item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def canvas_size(rng: np.random.Generator, grid: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of a picture that closest-aspect tiling cuts into `grid` (columns, rows).

    The size is near the grid's own, 64 pixels a tile, with some variation of scale and aspect. The bounds keep the
    grid: neighbouring aspects are at least a quarter away, and a square picture stays one tile up to half the area of
    2×2 tiles and becomes four beyond it (`vlm_jax.data.layouts.closest_aspect.choose_grid`).
    """
    columns, rows = grid
    scale = rng.uniform(0.85, 1.3) if grid == (1, 1) else rng.uniform(0.85, 1.15)
    aspect = np.exp(rng.uniform(-0.07, 0.07))
    return round(TILE * columns * scale * aspect**0.5), round(TILE * rows * scale / aspect**0.5)


def pixels_per_model_pixel(size: tuple[int, int], grid: tuple[int, int]) -> float:
    """How many pixels of the picture become one pixel of the tiles it is resized to (geometric mean of both axes)."""
    return float(np.sqrt(size[0] / (TILE * grid[0]) * size[1] / (TILE * grid[1])))


@functools.cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.cache
def font(name: str, cap_height: int) -> ImageFont.FreeTypeFont:
    """The font at the size where a capital letter is `cap_height` pixels high."""
    path = str(_font_folder() / f"{name}.ttf")
    probe = ImageFont.truetype(path, 100)
    _, top, _, bottom = probe.getbbox("H")
    return ImageFont.truetype(path, cap_height * 100 / (bottom - top))


def paper_and_ink(rng: np.random.Generator, dark: float = 0.25) -> tuple[Color, Color]:
    """A background and a foreground colour of high contrast; the background is the dark one in a share `dark`."""
    light = tuple(int(c) for c in rng.integers(205, 256, 3))
    ink = tuple(int(c) for c in np.clip(rng.integers(0, 60) + rng.integers(0, 70, 3), 0, 110))
    return (ink, light) if rng.random() < dark else (light, ink)


def blank(rng: np.random.Generator, size: tuple[int, int], paper: Color, texture: float = 0.4) -> Image.Image:
    """A sheet of `paper`, in a share `texture` of the cases with a faint uneven shade (at most 12 of 255 levels)."""
    if rng.random() >= texture:
        return Image.new("RGB", size, paper)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8), "L").resize(size, Image.Resampling.BICUBIC)
    shade = (np.asarray(coarse, np.float32) / 255 - 0.5) * rng.uniform(8, 24)
    sheet = np.asarray(paper, np.float32) + shade[:, :, None]
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))
