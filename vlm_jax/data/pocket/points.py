"""Task `point`: where a named thing is, as a box with integers 0–1000 (InternVL's grounding format)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from vlm_jax.data.boxes import format_box, format_reference
from vlm_jax.data.pocket.canvas import FONTS, Grid, blank, canvas_size, choose, font, paper_and_ink, pick
from vlm_jax.data.pocket.charts import make_chart
from vlm_jax.data.pocket.digits import ink_mask
from vlm_jax.data.pocket.documents import make_document
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.photos import crop_region
from vlm_jax.data.pocket.scene import Box, Question, Scene

KINDS = ("thing", "line", "thing", "digit", "thing", "bar")
"""Half of the questions are after a thing among one to three, the others after a line of a document, a bar of a chart
or a digit among several."""
HARD_KINDS = ("digit", "thing", "digit", "line", "thing", "digit", "bar")
"""Where what is hard comes more often (`Preset.hard`)."""

LAYOUTS = {(1, 1): 0.76, (2, 1): 0.07, (1, 2): 0.07, (2, 2): 0.06, (3, 2): 0.04}
"""Tile grid → share of the pictures with things."""

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")

ON_SHELVES = 0.85
"""Share of the pictures of one tile in which things, but no words, stand in compartments of a third of its sides."""

SMALLEST_PART = 0.05
"""A bar is asked for where it is at least this share of the picture's height and width."""


def draw_point(
    rng: np.random.Generator, material: Material, ask: str, layouts: Mapping[Grid, float] | None = None
) -> Scene:
    """Things on a sheet, or a chart or document, whose parts are pointed at."""
    provenance: dict = {}
    if ask == "bar":
        chart, image, bars = make_chart(rng, material, layouts)
        boxes = {f"the bar {label}": box for label, box in bars.items() if _large_enough(box, image.size)}
        boxes = boxes or {f"the bar {label}": box for label, box in bars.items()}
        provenance["content"] = chart.content
    elif ask == "line":
        document, image, lines = make_document(rng, material, choose(rng, ("receipt", "form")), layouts)
        boxes = {f"the line {label}": box for label, box in lines.items()}
        provenance["content"] = document.content
    else:
        image, boxes, provenance = _draw_things(
            rng, material, pick(rng, layouts or LAYOUTS), only_digits=ask == "digit"
        )
    return _scene(rng, image, boxes, ask, provenance)


def _scene(rng: np.random.Generator, image: Image.Image, boxes: dict[str, Box], ask: str, provenance: dict) -> Scene:
    """Asks where things are and, in training, what is in the box of one."""
    names = [str(name) for name in rng.permutation(list(boxes))]
    answers = {name: format_reference(name) + format_box(boxes[name], image.size) for name in names}
    request = "Please provide the bounding box coordinate of the region this sentence describes: "
    where = [Question(ask, request + format_reference(name), answers[name]) for name in names]
    # Of a thing that the first question does not name, as long as there are two.
    what = Question("what", f"What is in the region {format_box(boxes[names[-1]], image.size)}?", names[-1])
    listing = Question("transcription", "List everything with its box.", "\n".join(answers[name] for name in boxes))
    return Scene(image, (where[0], what, *where[1:3]), listing, provenance)


def _large_enough(box: Box, size: tuple[int, int]) -> bool:
    return box[2] - box[0] >= SMALLEST_PART * size[0] and box[3] - box[1] >= SMALLEST_PART * size[1]


def _draw_things(
    rng: np.random.Generator, material: Material, grid: Grid, only_digits: bool
) -> tuple[Image.Image, dict[str, Box], dict]:
    """One to three things of any kind, or two to four different digits, that do not overlap.

    In most pictures of one tile they stand on shelves (`_shelves`).
    """
    size = canvas_size(rng, grid)
    paper, ink = paper_and_ink(rng)
    sheet = blank(rng, size, paper)
    count = int(rng.integers(2, 5)) if only_digits else 1 + int(rng.choice(3, p=(0.6, 0.25, 0.15)))
    shelves = grid == (1, 1) and rng.random() < ON_SHELVES
    known = ("digit",) if only_digits else ("shape", "digit", "photograph") if shelves else tuple(_THINGS)
    kinds = [choose(rng, known) for _ in range(count)]
    boxes: dict[str, Box] = {}
    used: dict[str, set] = {"digits": set(), "regions": set()}
    places = _shelves(rng, size, count) if shelves else _places(rng, size, kinds, 0.4 if only_digits else 0.6)
    for kind, place in zip(kinds, places, strict=True):
        name = None
        while name is None or name in boxes:
            name, mask, fill, source = _THINGS[kind](rng, material, place, ink)
        boxes[name] = _paste(sheet, mask, fill, place)
        for key, value in source.items():
            used[key].add(value)
    ordered = dict(sorted(boxes.items(), key=lambda item: (item[1][1], item[1][0])))
    return sheet, ordered, {key: sorted(values) for key, values in used.items() if values}


def _shelves(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[tuple[int, int, int, int]]:
    """A box for each thing in one of nine compartments, which it nearly fills."""
    chosen = rng.permutation(9)[:count]
    places = []
    for row, column in zip(chosen // 3, chosen % 3, strict=True):
        side = np.asarray(size) / 3
        extent = side * rng.uniform(0.8, 0.95, 2)
        left, top = (column, row) * side + (side - extent) * rng.uniform(0.2, 0.8, 2)
        places.append(tuple(round(value) for value in (left, top, left + extent[0], top + extent[1])))
    return places


def _places(
    rng: np.random.Generator, size: tuple[int, int], kinds: list[str], largest: float
) -> list[tuple[int, int, int, int]]:
    """A box for a thing of each kind, none touching another.

    Sides are a quarter to `largest` of the picture's shorter side; a word is wider and less high.
    """
    while True:
        places: list[tuple[int, int, int, int]] = []
        for _ in range(40 * len(kinds)):
            width, height = _extent(rng, kinds[len(places)], largest) * min(size)
            left, top = int(rng.integers(size[0] - int(width))), int(rng.integers(size[1] - int(height)))
            new = (left, top, left + int(width), top + int(height))
            if all(_apart(new, old, gap=2) for old in places):
                places.append(new)
            if len(places) == len(kinds):
                return places
        # Too large to fit together: draw all sizes anew, a little smaller.
        largest = max(0.3, largest * 0.95)


def _extent(rng: np.random.Generator, kind: str, largest: float) -> np.ndarray:
    """Width and height as shares of the picture's shorter side."""
    if kind == "word":
        return rng.uniform((0.5, 0.2), (max(0.5, 1.3 * largest), 0.3))
    sides = rng.uniform(0.25, largest, 2)
    # Wide and high things, but none so thin that it cannot be recognised.
    return np.maximum(sides, 0.65 * sides.max())


def _apart(one: tuple, other: tuple, gap: int) -> bool:
    return one[2] + gap <= other[0] or other[2] + gap <= one[0] or one[3] + gap <= other[1] or other[3] + gap <= one[1]


def _paste(sheet: Image.Image, mask: Image.Image, fill: tuple | Image.Image, place: tuple) -> Box:
    """Puts a thing in the middle of its place; returns the box of its visible pixels."""
    left = place[0] + (place[2] - place[0] - mask.width) // 2
    top = place[1] + (place[3] - place[1] - mask.height) // 2
    if isinstance(fill, Image.Image):
        sheet.paste(fill, (left, top), mask)
    else:
        sheet.paste(fill, (left, top, left + mask.width, top + mask.height), mask)
    seen = mask.point(lambda value: 255 * (value > 96)).getbbox() or (0, 0, mask.width, mask.height)
    return left + seen[0], top + seen[1], left + seen[2], top + seen[3]


def _shape(rng: np.random.Generator, material: Material, place: tuple, ink: tuple) -> tuple:
    """A filled shape in a strong colour, drawn four times as large and reduced for smooth edges."""
    name = choose(rng, SHAPES)
    width, height = place[2] - place[0], place[3] - place[1]
    mask = Image.new("L", (4 * width, 4 * height))
    draw = ImageDraw.Draw(mask)
    if name in ("disc", "ring"):
        draw.ellipse((0, 0, mask.width - 1, mask.height - 1), 255)
        if name == "ring":
            hole = (0.28 * mask.width, 0.28 * mask.height, 0.72 * mask.width, 0.72 * mask.height)
            draw.ellipse(hole, 0)
    else:
        draw.polygon([(x * (mask.width - 1), y * (mask.height - 1)) for x, y in _OUTLINES[name]], 255)
    return f"the {name}", mask.resize((width, height), Image.Resampling.BOX), _strong(rng, ink), {}


def _digit(rng: np.random.Generator, material: Material, place: tuple, ink: tuple) -> tuple:
    """A handwritten digit of the split."""
    k = int(rng.integers(len(material.labels)))
    mask = ink_mask(rng, material.digits[k], 64)
    mask = mask.crop(mask.point(lambda value: 255 * (value > 64)).getbbox())
    factor = min((place[2] - place[0]) / mask.width, (place[3] - place[1]) / mask.height)
    mask = mask.resize([max(1, round(factor * side)) for side in mask.size], Image.Resampling.BICUBIC)
    return f"the digit {material.labels[k]}", mask, ink, {"digits": int(material.indices[k])}


def _word(rng: np.random.Generator, material: Material, place: tuple, ink: tuple) -> tuple:
    """A short word as large as its place allows, in a printed font."""
    word = choose(rng, [word for word in material.words if len(word) <= 5])
    width, height = place[2] - place[0], place[3] - place[1]
    face_name = choose(rng, FONTS)
    for cap in range(height, 3, -1):
        face = font(face_name, cap)
        left, top, right, bottom = (int(value) for value in face.getbbox(word))
        if right - left <= width and bottom - top <= height:
            break
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), word, 255, face)
    return f"the word {word}", mask, ink, {}


def _photograph(rng: np.random.Generator, material: Material, place: tuple, ink: tuple) -> tuple:
    """A crop of one of the split's photograph regions."""
    name = choose(rng, sorted(material.regions))
    region = choose(rng, material.regions[name])
    size = (place[2] - place[0], place[3] - place[1])
    crop = crop_region(rng, region, size, jitter=material.split == "train")
    return f"the {name} photograph", Image.new("L", size, 255), crop, {"regions": region.id}


def _strong(rng: np.random.Generator, ink: tuple) -> tuple[int, int, int]:
    """A saturated colour on the ink's side of the brightness scale."""
    hue = rng.permutation([0.0, rng.uniform(0, 0.6), 1.0])
    dark_ink = sum(ink) < 384
    color = hue * 200 if dark_ink else 120 + hue * 135
    return tuple(int(channel) for channel in color)


def _star(points: int = 5, inner: float = 0.42) -> list[tuple[float, float]]:
    """Corners of a star that touches all four sides of the unit square."""
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    corners = np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)
    corners = (corners - corners.min(0)) / np.ptp(corners, axis=0)
    return [tuple(corner) for corner in corners]


_OUTLINES = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _star(),
    "cross": [
        *((0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)),
        *((0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)),
    ],
}
"""Corners of shapes in the unit square."""

_THINGS = {"shape": _shape, "digit": _digit, "word": _word, "photograph": _photograph}
"""Kind of thing → function of (rng, material, place, ink) giving (name, mask, fill, what it was made from)."""
