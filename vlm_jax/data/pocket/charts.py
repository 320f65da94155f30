"""Task `chart`: bar charts drawn by matplotlib."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from PIL import Image

from vlm_jax.data.pocket.canvas import TILE, Grid, canvas_size, choose, paper_and_ink, pick, pixels_per_model_pixel
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import READ, Box, Question, Scene, split_of

KINDS = ("value", "highest", "compare", "lowest")
"""A quarter of the questions is after a value, the others compare bars."""
HARD_KINDS = ("highest", "lowest", "value", "highest", "lowest", "compare")
"""Where what is hard comes more often (`Preset.hard`)."""

LAYOUTS = {(1, 1): 0.74, (2, 1): 0.12, (2, 2): 0.08, (3, 2): 0.03, (3, 1): 0.03}
"""Tile grid → share of the charts."""

BARS = {(1, 1): (3, 3), (2, 1): (2, 4), (2, 2): (2, 4), (3, 2): (3, 4), (3, 1): (3, 4)}
"""Tile grid → fewest and most bars."""

SERIES = 0.85
"""Share of the charts whose bars are called A, B, C, ... from left to right; the others have letters in any order, or
words."""

FAMILIES = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")


@dataclasses.dataclass(frozen=True)
class Chart:
    """What a chart says: the label and the value (1–9) of each bar, and whether the values are printed."""

    labels: tuple[str, ...]
    values: tuple[int, ...]
    printed: bool

    @property
    def content(self) -> str:
        """Labels and values as one text, which decides the split."""
        return "chart: " + ", ".join(f"{label} {value}" for label, value in zip(self.labels, self.values, strict=True))


def draw_chart(
    rng: np.random.Generator, material: Material, ask: str, layouts: Mapping[Grid, float] | None = None
) -> Scene:
    """A bar chart: the `value` of a bar, the `highest`, the `lowest`, or whether one is higher than another."""
    chart, image, _ = make_chart(rng, material, layouts)
    return Scene(
        image=image,
        questions=_questions(rng, chart, ask),
        transcription=Question("transcription", READ, transcribe(chart)),
        provenance={"content": chart.content},
    )


def make_chart(
    rng: np.random.Generator, material: Material, layouts: Mapping[Grid, float] | None = None
) -> tuple[Chart, Image.Image, dict[str, Box]]:
    """Invents and draws a chart that belongs to the split of `material`.

    Returns:
      The chart, its picture, and the box of every bar in pixels by the bar's label.
    """
    while True:
        grid = pick(rng, layouts or LAYOUTS)
        chart = _invent(rng, material.words, grid)
        if split_of(chart.content) == material.split:
            return chart, *_draw(rng, chart, grid)


def transcribe(chart: Chart) -> str:
    """`label: value` for each bar, a bar a line."""
    return "\n".join(f"{label}: {value}" for label, value in zip(chart.labels, chart.values, strict=True))


def _invent(rng: np.random.Generator, words: tuple[str, ...], grid: tuple[int, int]) -> Chart:
    """Different values, so that there is one highest and one lowest."""
    fewest, most = BARS[grid]
    count = int(rng.integers(fewest, most + 1))
    printed = bool(rng.random() < 0.4)
    values = rng.permutation(np.arange(1, 10))[:count]
    # A letter is about seven model pixels wide, and the scale to the left takes the room of two.
    room = (TILE * grid[0] - 16) / count / (7.5 * _enlargement(grid))
    short = [word for word in words if len(word) <= room - 0.5]
    if rng.random() < SERIES:
        labels = list("ABCD"[:count])
    elif len(short) < 8 or rng.random() < 0.3:
        labels = [str(letter) for letter in rng.permutation(list("ABCDEFGH"))[:count]]
    else:
        labels = [short[k] for k in rng.permutation(len(short))[:count]]
    return Chart(tuple(labels), tuple(int(value) for value in values), printed)


def _questions(rng: np.random.Generator, chart: Chart, ask: str) -> tuple[Question, ...]:
    """Values of all bars, both extremes and one comparison, those of kind `ask` first."""
    pairs = list(zip(chart.labels, chart.values, strict=True))
    asked = [Question("value", f"What is the value of {label}?", str(value)) for label, value in pairs]
    asked.append(Question("highest", "Which bar is highest?", max(pairs, key=lambda pair: pair[1])[0]))
    asked.append(Question("lowest", "Which bar is lowest?", min(pairs, key=lambda pair: pair[1])[0]))
    one, other = sorted((pairs[k] for k in rng.permutation(len(pairs))[:2]), key=lambda pair: pair[1])
    # A fair coin says whether the answer is yes, whatever the values.
    yes = bool(rng.integers(2))
    first, second = (other, one) if yes else (one, other)
    asked.append(Question("compare", f"Is {first[0]} higher than {second[0]}?", "yes" if yes else "no"))
    order = [asked[k] for k in rng.permutation(len(asked))]
    return tuple(sorted(order, key=lambda question: question.kind != ask))


def _enlargement(grid: tuple[int, int]) -> float:
    """Text grows a little where there are tiles to hold it."""
    return 1.0 if grid[1] == 1 else 1.25


@functools.cache
def _axes():
    """One figure with the Agg canvas and bare axes for all charts: making new ones takes longer than drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=72)  # a point is a pixel
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


def _empty_axes():
    """The axes without what the last chart left there."""
    axes = _axes()
    for artist in [*axes.containers, *axes.texts, *axes.lines]:
        artist.remove()
    return axes


def _draw(rng: np.random.Generator, chart: Chart, grid: tuple[int, int]) -> tuple[Image.Image, dict[str, Box]]:
    """Draws with matplotlib; sizes of text and lines are in pixels of the tiles that the model sees."""
    size = canvas_size(rng, grid)
    unit = pixels_per_model_pixel(size, grid)
    large = _enlargement(grid)
    paper, ink = ([channel / 255 for channel in color] for color in paper_and_ink(rng, dark=0.15))
    style = {"fontfamily": choose(rng, FAMILIES), "fontsize": 11 * unit * large, "color": ink}
    axes = _empty_axes()
    figure = axes.figure
    figure.set_size_inches(size[0] / 72, size[1] / 72)
    figure.set_facecolor(paper)
    text = 13 * unit * large
    left = (text + 4 * unit if rng.random() < 0.3 else 3 * unit) / size[0]
    bottom, top = (text + 1 * unit) / size[1], (text if chart.printed else 4 * unit) / size[1]
    axes.set_position((left, bottom, 1 - left - 2 * unit / size[0], 1 - bottom - top))
    places = np.arange(len(chart.labels))
    bars = axes.bar(places, chart.values, width=rng.uniform(0.55, 0.85), color=_bar_colors(rng, len(places), paper))
    axes.set(xlim=(-0.6, len(places) - 0.4), ylim=(0, 10))
    _decorate(axes, chart, places, style, unit, left * size[0] > text)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy())
    boxes = {}
    for label, bar in zip(chart.labels, bars, strict=True):
        extent = bar.get_window_extent()
        boxes[label] = (extent.x0, image.height - extent.y1, extent.x1, image.height - extent.y0)
    return image, boxes


def _decorate(axes, chart: Chart, places: np.ndarray, style: dict, unit: float, ticks: bool) -> None:
    """Labels below the bars; values over them where printed; a scale to the left where there is room for one."""
    axes.axhline(0, color=style["color"], linewidth=1.3 * unit, clip_on=False, zorder=3)
    for place, label in zip(places, chart.labels, strict=True):
        axes.annotate(label, (place, 0), (0, -2 * unit), textcoords="offset pixels", ha="center", va="top", **style)
    if chart.printed:
        for place, value in zip(places, chart.values, strict=True):
            axes.annotate(str(value), (place, value), (0, unit), textcoords="offset pixels", ha="center", **style)
    if ticks:
        small = style | {"fontsize": 0.85 * style["fontsize"]}
        for mark in (0, 5, 10):
            axes.axhline(mark, color=style["color"], linewidth=0.5 * unit, alpha=0.5, zorder=0)
            near = {"textcoords": "offset pixels", "ha": "right", "va": "center" if mark else "bottom"}
            axes.annotate(str(mark), (axes.get_xlim()[0], mark), (-unit, 0), annotation_clip=False, **near, **small)


def _bar_colors(rng: np.random.Generator, count: int, paper: list[float]) -> list[np.ndarray]:
    """One colour for all bars, or one each; far enough from the paper's brightness to stand out."""
    light_paper = np.mean(paper) > 0.5
    colors = []
    for _ in range(count):
        color = rng.uniform(0.0, 1.0, 3)
        # Pull the mean brightness to the side away from the paper.
        target = rng.uniform(0.25, 0.55) if light_paper else rng.uniform(0.6, 0.85)
        colors.append(np.clip(color - color.mean() + target, 0, 1))
    return colors if rng.random() < 0.5 else [colors[0]] * count
