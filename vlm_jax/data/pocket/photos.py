"""Task `photo`: which photograph a crop comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vlm_jax.data.pocket.canvas import Grid, canvas_size, choose, pick
from vlm_jax.data.pocket.material import Material, Region
from vlm_jax.data.pocket.scene import Question, Scene

KINDS = ("name",)

LAYOUTS = {(1, 1): 0.68, (2, 1): 0.14, (1, 2): 0.08, (2, 2): 0.06, (3, 2): 0.04}
"""Tile grid → share of the crops."""

SMALLEST_CROP = 0.45
"""Shortest side of a crop, as a share of the largest of its shape that the region holds."""


def draw_photo(
    rng: np.random.Generator, material: Material, ask: str, number: int, layouts: Mapping[Grid, float] | None = None
) -> Scene:
    """A crop of the photograph that is the turn of record `number`, so that all are asked for equally often."""
    names = sorted(material.regions)
    name = names[number % len(names)]
    region = choose(rng, material.regions[name])
    image = crop_region(rng, region, canvas_size(rng, pick(rng, layouts or LAYOUTS)), jitter=material.split == "train")
    other = choose(rng, [other for other in names if other != name])
    guess = choose(rng, (name, other))
    colored = _is_colored(region)
    questions = (
        Question("name", "Which photograph does this crop come from?", name),
        Question("whether", f"Does this crop come from {guess}?", "yes" if guess == name else "no"),
        Question("color", "Is the photograph in colour?", "yes" if colored else "no"),
    )
    text = f"A {_brightness(image)} {'colour' if colored else 'grey'} photograph: {name}"
    return Scene(image, questions, Question("transcription", "Describe the image.", text), {"regions": [region.id]})


def crop_region(rng: np.random.Generator, region: Region, size: tuple[int, int], jitter: bool) -> Image.Image:
    """A random crop of a region resized to `size`; with `jitter` also mirrored and made lighter or darker at random."""
    height, width = region.pixels.shape[:2]
    fit = min(width / size[0], height / size[1])
    scale = fit * rng.uniform(SMALLEST_CROP, 1.0)
    crop_width, crop_height = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    left, top = int(rng.integers(width - crop_width + 1)), int(rng.integers(height - crop_height + 1))
    crop = Image.fromarray(region.pixels[top : top + crop_height, left : left + crop_width])
    image = crop.resize(size, Image.Resampling.BICUBIC)
    if jitter:
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.85, 1.15))
    return image


def _is_colored(region: Region) -> bool:
    """Whether the three channels of the photograph differ at all."""
    red, green, blue = np.moveaxis(region.pixels, 2, 0)
    return not (np.array_equal(red, green) and np.array_equal(red, blue))


def _brightness(image: Image.Image) -> str:
    return "dark" if np.asarray(image.convert("L")).mean() < 100 else "bright"
