"""Draws `docs/images/overview.png`, the picture of the README: `python docs/images/make.py` in the repository's root.

Everything in it is computed: a record of the pocket data's test split, its tiles as the data pipeline cuts them, the
number of visual tokens of the pocket model, and the stages of `configs/pocket.py` with the parts that they train.
"""

import importlib.util
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from vlm_jax.config import build
from vlm_jax.data.images import decode_image
from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.records import make_record
from vlm_jax.training.recipe import Recipe

HERE = Path(__file__).parent
TASK, NUMBER = "document", 5
WIDTH, HEIGHT = 1320, 640  # pixels, and the units of all coordinates here

INK, PAPER = "#1f2430", "#ffffff"
BLUE, GREEN, ORANGE, GREY = "#dbe7fb", "#d9f0e1", "#fde6cf", "#e6e8ee"
STAGES = {
    "teacher": ("Teacher", "a larger encoder learns to read\nwith the decoder behind it"),
    "distill": ("Distil", "the pocket encoder learns to\nsee what the teacher sees"),
    "align": ("Align", "the connector learns the\nlanguage of the frozen decoder"),
    "tune": ("Tune", "everything learns together,\nfrom what the stages left"),
}


def main() -> None:
    """Draws and saves the picture."""
    recipe = _recipe()
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    _question(axes, recipe)
    _road(axes, recipe)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    colours = Image.open(stream).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colours.save(HERE / "overview.png", optimize=True)


def _recipe() -> Recipe:
    spec = importlib.util.spec_from_file_location("pocket", HERE.parents[1] / "configs" / "pocket.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return build(Recipe, module.get_config())


def _question(axes, recipe: Recipe) -> None:
    """Upper half: picture, tiles, visual tokens, answer."""
    layout = recipe.system.layout
    conversation = make_record(0, "test", TASK, NUMBER, load_material(0)["test"]).conversation
    image = decode_image(conversation.images[0], conversation.id)
    tiles = layout.cut_tiles(image)
    columns, rows = layout.grid(*image.size)
    question, answer = (turn.text.removeprefix("<image>\n") for turn in conversation.turns)

    top, side = 74, 216
    _title(axes, 40, f"picture, {image.width} × {image.height} pixels")
    _show(axes, image, 40, top, side * image.width / image.height, side)
    _arrow(axes, 266, top + side / 2)

    _title(axes, 316, f"{columns} × {rows} tiles of {layout.tile_size} pixels, and a thumbnail")
    cell, gap = 104, 8
    for number, tile in enumerate(tiles[:-1]):
        row, column = divmod(number, columns)
        _show(axes, tile, 316 + column * (cell + gap), top + row * (cell + gap), cell, cell)
    _show(axes, tiles[-1], 316 + columns * (cell + gap) + 16, top + (cell + gap) / 2, cell, cell)
    _arrow(axes, 696, top + side / 2)

    visual = len(tiles) * recipe.system.model.tokens_per_tile
    x, width = 750, 218
    _box(axes, x, top, width, 64, GREEN, "vision encoder", f"{len(tiles)} tiles")
    _box(axes, x, top + 76, width, 64, ORANGE, "connector", f"{visual} visual tokens")
    _box(axes, x, top + 152, width, 64, BLUE, "decoder", "visual tokens and words")
    _arrow(axes, 992, top + side / 2)

    x = 1046
    _title(axes, x, "question")
    axes.text(x, top + 16, question, fontsize=15, color=INK, va="center")
    _title(axes, x, "reference answer", top + 96)
    axes.text(x, top + 136, answer, fontsize=30, color=INK, va="center", weight="bold")


def _road(axes, recipe: Recipe) -> None:
    """Lower half: the stages of the recipe, and what each trains."""
    top, width, gap, height = 372, 286, 32, 218
    axes.plot([40, WIDTH - 40], [332, 332], color=GREY, linewidth=1.5)
    for number, stage in enumerate(recipe.stages):
        name, purpose = STAGES[stage.name]
        x = 40 + number * (width + gap)
        _frame(axes, x, top, width, height, PAPER)
        axes.text(x + 18, top + 30, f"{number + 1}  {name}", fontsize=16, color=INK, weight="bold", va="center")
        axes.text(x + 18, top + 76, purpose, fontsize=11.5, color=INK, va="center", linespacing=1.4)
        for line, (part, colour, glob) in enumerate(_parts(stage.name)):
            trains = "**" in stage.trainable or glob in stage.trainable
            y = top + 114 + line * 32
            _frame(axes, x + 18, y, width - 36, 26, colour if trains else PAPER)
            state = "learns" if trains else "frozen"
            axes.text(x + 30, y + 13.5, part, fontsize=10.5, color=INK if trains else "#8a8f9c", va="center")
            right = x + width - 30
            axes.text(
                right, y + 13.5, state, fontsize=10.5, color=INK if trains else "#8a8f9c", va="center", ha="right"
            )
        if number:
            _arrow(axes, x - gap + 6, top + height / 2, 20)


def _parts(stage: str) -> list[tuple[str, str, str]]:
    """The parts that a stage computes with: name, colour, the glob that makes it trainable."""
    if stage == "teacher":
        return [("teacher's encoder", GREEN, "teacher/**"), ("its connector", ORANGE, "teacher/**"),
                ("decoder", BLUE, "decoder/**")]  # fmt: skip
    if stage == "distill":
        return [("encoder", GREEN, "vision/**"), ("projections", GREY, "distillation/**"),
                ("teacher's encoder", GREEN, "teacher/**")]  # fmt: skip
    return [("encoder", GREEN, "vision/**"), ("connector", ORANGE, "connector/**"), ("decoder", BLUE, "decoder/**")]


def _title(axes, x: float, text: str, y: float = 46) -> None:
    axes.text(x, y, text, fontsize=11.5, color="#5b6170", va="center")


def _show(axes, picture, x: float, y: float, width: float, height: float) -> None:
    axes.imshow(picture, extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))


def _frame(axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    style = "round,pad=0,rounding_size=8"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="#b9bfcc"))


def _box(axes, x: float, y: float, width: float, height: float, colour: str, name: str, detail: str) -> None:
    _frame(axes, x, y, width, height, colour)
    axes.text(x + width / 2, y + height * 0.36, name, fontsize=13, color=INK, ha="center", va="center", weight="bold")
    axes.text(x + width / 2, y + height * 0.7, detail, fontsize=11, color=INK, ha="center", va="center")


def _arrow(axes, x: float, y: float, length: float = 36) -> None:
    arrow = dict(arrowstyle="-|>", color="#5b6170", linewidth=1.6, mutation_scale=16)
    axes.annotate("", xy=(x + length, y), xytext=(x, y), arrowprops=arrow)


if __name__ == "__main__":
    main()
