"""The raw material, divided between the splits: handwritten digits, photographs and words that come in wheels.

| material | source | terms |
|---|---|---|
| digits | scikit-learn `load_digits`: 1797 images of the UCI handwritten digits | CC BY 4.0 |
| temple | scikit-learn `china.jpg`, by danielbuechele | CC BY 2.0 |
| flower | scikit-learn `flower.jpg`, by vultilion | CC BY 2.0 |
| astronaut | scikit-image, NASA Great Images | public domain |
| bricks, grass, gravel | scikit-image, CC0Textures | CC0 |
| cameraman | scikit-image `camera`, by Lav Varshney | CC0 |
| cat | scikit-image `chelsea`, by Stefan van der Walt | CC0 |
| coffee | scikit-image, by Rachel Michetti (Pikolo Espresso Bar) | CC0 |
| coins | scikit-image, Brooklyn Museum Collection | no known copyright restrictions |
| galaxies | scikit-image `hubble_deep_field`, NASA | public domain |
| handwriting | scikit-image `text`, Wikipedia `Corner.png` | public domain |
| retina | scikit-image, by Mikael Häggström | CC0 |
| rocket | scikit-image, SpaceX | public domain |
| tissue | scikit-image `ihc`, CMMI | no known copyright restrictions |
| words | prose of scikit-learn's dataset descriptions (`datasets/descr/*.rst`) | BSD-3-Clause |

The terms of the scikit-image pictures are those its `skimage.data` docstrings state.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_jax.data.pocket.scene import SPLITS, Box
from vlm_jax.errors import UserError

PHOTOGRAPHS = {
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "bricks": ("skimage", "data/brick.png"),
    "cameraman": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "handwriting": ("skimage", "data/text.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
"""Name of a photograph in questions and answers → package and file within it."""

CELLS_A_SIDE = 3
"""A photograph is cut into 3×3 cells; each belongs to one split."""

CELLS = {"train": 6, "validation": 1, "test": 2}

GUARD = 8
"""Pixels between two cells that no crop uses, so that no split sees the edge of another's region."""

SHORTER_SIDE = 400
"""Photographs are reduced to this, in pixels, where they are larger: crops then differ less in scale."""

DIGIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}

WORDS = 64
"""How many of the most frequent words of the prose are used."""


@dataclasses.dataclass(frozen=True)
class Region:
    """One cell of a photograph: its id (`temple/4`), its box in the photograph, uint8 pixels [height, width, 3]."""

    id: str
    photograph: str
    box: Box
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Material:
    """What one split may be drawn from.

    Attributes:
      split: name of the split.
      digits: uint8 [n, 8, 8], 0 is paper and 255 full ink.
      labels: int [n], the digit written.
      indices: int [n], number of the image in `load_digits`.
      regions: photograph regions by photograph name.
      words: lower-case words of three to six letters, the same in every split (a reader may know words; what a
        document says is what must be new).
    """

    split: str
    digits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    regions: dict[str, tuple[Region, ...]]
    words: tuple[str, ...]


def load_material(seed: int) -> dict[str, Material]:
    """Reads the raw material and divides it between the splits; the division is a function of `seed`.

    Raises:
      UserError: a file is not in the installed scikit-learn or scikit-image.
    """
    rng = np.random.default_rng([seed, 0])
    images, labels = _read_digits()
    digits = _divide_digits(labels, rng)
    regions = _divide_photographs(rng)
    words = read_words()
    return {
        split: Material(split, images[digits[split]], labels[digits[split]], digits[split], regions[split], words)
        for split in SPLITS
    }


def _package_file(package: str, path: str) -> Path:
    """A data file of an installed package, found without importing the package (scikit-learn takes a second)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package '{package}' is not installed, and the pocket data set needs its {path}")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.exists():
        raise UserError(f"{file}: not there; the pocket data set needs it, so reinstall '{package}' from a wheel")
    return file


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """All images of `load_digits` as uint8 [1797, 8, 8] scaled from 17 levels to 0–255, and their labels [1797]."""
    table = np.loadtxt(_package_file("sklearn", "datasets/data/digits.csv.gz"), delimiter=",", dtype=np.int64)
    images = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return images, table[:, 64]


def _divide_digits(labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Indices of the digit images of each split, stratified by digit."""
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(labels == digit))
        ends = np.round(np.cumsum([DIGIT_SHARES[split] for split in SPLITS]) * len(own)).astype(int)
        for split, part in zip(SPLITS, np.split(own, ends[:-1]), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def cells(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the 3×3 cells of a photograph in raster order, `GUARD` pixels apart."""
    n = CELLS_A_SIDE
    xs = [((width + GUARD) * k // n, (width + GUARD) * (k + 1) // n - GUARD) for k in range(n)]
    ys = [((height + GUARD) * k // n, (height + GUARD) * (k + 1) // n - GUARD) for k in range(n)]
    return [(left, top, right, bottom) for top, bottom in ys for left, right in xs]


def _divide_photographs(rng: np.random.Generator) -> dict[str, dict[str, tuple[Region, ...]]]:
    """Regions of each split: six cells of every photograph to train, one to validation, two to test."""
    divided: dict[str, dict[str, tuple[Region, ...]]] = {split: {} for split in SPLITS}
    owners = [split for split in SPLITS for _ in range(CELLS[split])]
    for name, (package, path) in PHOTOGRAPHS.items():
        with Image.open(_package_file(package, path)) as file:
            photograph = file.convert("RGB")
        factor = min(1.0, SHORTER_SIDE / min(photograph.size))
        photograph = photograph.resize([round(factor * side) for side in photograph.size], Image.Resampling.LANCZOS)
        order = rng.permutation(len(owners))
        boxes = cells(*photograph.size)
        for split in SPLITS:
            own = sorted(int(cell) for cell, owner in zip(order, owners, strict=True) if owner == split)
            divided[split][name] = tuple(
                Region(f"{name}/{cell}", name, boxes[cell], np.asarray(photograph.crop(boxes[cell]))) for cell in own
            )
    return divided


def read_words() -> tuple[str, ...]:
    """The `WORDS` most frequent lower-case words of three to six letters in scikit-learn's dataset descriptions."""
    counts: collections.Counter[str] = collections.Counter()
    for file in sorted(_package_file("sklearn", "datasets/descr").glob("*.rst")):
        for line in file.read_text(encoding="utf-8").splitlines():
            # Indented lines are code, tables and field lists; marked-up words are names of code.
            if not line.startswith((" ", "\t", ">", "=", ":", ".", "|")):
                counts.update(re.findall(r"(?<![\w`/.:@\-])[a-z]{3,6}(?=[ ,;.)]|$)", line))
    left_out = set(_LEFT_OUT.split())
    names = [word for word in counts if word not in left_out and re.search("[aeiou]", word)]
    ranked = sorted(names, key=lambda word: (-counts[word], word))
    return tuple(ranked[:WORDS])


_LEFT_OUT = """
    about after age all also and any are based been both but called can code could date each either first float for
    found from given had has have here how int into its itself known made make many may more most much must name non
    nor not numpy off one only other others our out over own pandas per rather room same scipy see seen set sets she
    should since size some such taken than that the their them then there these they this those three thus topic
    total two under use used uses using very via was way were what when where which while who will with within would
    you your
"""
"""Words that would say nothing as the name of a thing on a receipt, and the labels of the forms' fields."""
