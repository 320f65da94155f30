"""Computes the tables of `docs/architecture.md` that show shapes and sizes: `python docs/shapes.py --write`.

Nothing in them is typed by hand: models are traced without being run, a picture is cut, and the sharding tables are
asked. `tests/test_docs.py` fails when the document and the code no longer agree.
"""

import functools
import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from einops import rearrange
from PIL import Image

from vlm_jax import globs
from vlm_jax.batch import BatchShape, empty_batch
from vlm_jax.config import build
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.models.connector import pixel_shuffle
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import normalise
from vlm_jax.models.vlm import VLM, VLMConfig, init_params
from vlm_jax.sharding import PARAMETER_AXES, partition
from vlm_jax.training.recipe import Recipe

DOCUMENT = Path(__file__).parent / "architecture.md"
ROOT = DOCUMENT.parents[1]


def pocket() -> Recipe:
    """The recipe of `configs/pocket.py`."""
    spec = importlib.util.spec_from_file_location("pocket", ROOT / "configs" / "pocket.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return build(Recipe, module.get_config())


def mini_internvl_1b() -> VLMConfig:
    """Mini-InternVL-1B: what the config classes have as defaults."""
    return build(VLMConfig, {"vision": {}, "connector": {}, "decoder": {}})


def example_shapes(
    model: VLMConfig, layout: ClosestAspect, size: tuple[int, int], rows: int, tokens: int, slots: int
) -> list[str]:
    """Shapes of one picture of `size`, and of the batch that it ends up in, at every step of the way."""
    columns, grid_rows = layout.grid(*size)
    tiles = layout.cut_tiles(Image.new("RGB", size))
    patches = patchify(tiles, model.vision.patch_size)
    shape = BatchShape(rows, tokens, slots, model.vision.patches, model.patch_values)
    steps = jax.eval_shape(partial(_forward, model), _parameters(model), jax.eval_shape(lambda: _device_batch(shape)))
    return [
        f"{size[0]} × {size[1]} pixels",
        f"{columns} × {grid_rows}",
        _show(tiles),
        _show(patches),
        f"{len(tiles)} × {model.tokens_per_tile} = {len(tiles) * model.tokens_per_tile}",
        *(_show(step) for step in steps),
    ]


STEPS = (
    ("picture", "`data/images.py`, `decode_image`"),
    ("grid, across × down", "`data/layouts/closest_aspect.py`, `choose_grid`"),
    ("tiles, the thumbnail last", "`data/layouts/layout.py`, `TileLayout`"),
    ("patches of the tiles", "`data/layouts/patches.py`, `write_patches`"),
    ("placeholders in the text", "`data/text/render.py`, `render`"),
    ("`Batch.tokens`", "`data/plan/packing.py`, `pack_row`"),
    ("`Batch.patches`", "`data/plan/packing.py`, `pack_row`"),
    ("normalised patches, all rows' tiles together", "`models/vision_transformer.py`, `normalise`"),
    ("hidden states, the class token first", "`models/vision_transformer.py`, `VisionTransformer`"),
    ("after pixel shuffle, without class token", "`models/connector.py`, `pixel_shuffle`"),
    ("visual tokens, row by row", "`models/vlm.py`, `VLM.encode`"),
    ("embeddings of visual and text tokens", "`models/vlm.py`, `VLM.embed`"),
    ("hidden states", "`models/decoder.py`, `Decoder`"),
    ("logits, if all were held at once", "`models/decoder.py`, `Decoder.logits`"),
)


def _device_batch(shape: BatchShape):
    return jax.tree.map(jnp.asarray, empty_batch(shape))


def _forward(model: VLMConfig, params, batch):
    network = VLM(model, Compute(scan_layers=True))  # traces one layer in place of all
    apply = partial(network.apply, {"params": params})
    tiles = rearrange(batch.patches, "b k n p -> (b k) n p")
    features, _ = apply(tiles, method=lambda vlm, x: vlm.vision(x))
    visual = apply(batch.patches, method=VLM.encode)
    embedded = apply(batch.tokens, batch.splice, visual, method=VLM.embed)
    hidden = apply(
        embedded, batch.positions, batch.segments, batch.branches, method=lambda vlm, *inputs: vlm.decoder(*inputs)
    )
    logits = apply(hidden, method=lambda vlm, x: vlm.decoder.logits(x))
    folded = pixel_shuffle(features[:, 1:], model.connector.factor)
    return batch.tokens, batch.patches, normalise(tiles), features, folded, visual, embedded, hidden, logits


@functools.cache
def _parameters(model: VLMConfig):
    return jax.eval_shape(partial(init_params, model), jax.random.key(0))


def _show(array) -> str:
    short = {"int32": "i32", "uint8": "u8", "float32": "f32"}[str(array.dtype)]
    return f"{short} [{', '.join(map(str, array.shape))}]"


def way_table() -> str:
    """The way of one example, at pocket size and at full size."""
    recipe, large = pocket(), mini_internvl_1b()
    data = recipe.stages[-1].data
    small = example_shapes(recipe.system.model, recipe.system.layout, (136, 138), data.rows, data.tokens, data.tiles)
    full = example_shapes(large, ClosestAspect(), (1792, 1344), 1, 4096, 13)
    lines = ["| step | where | pocket | Mini-InternVL-1B |", "|---|---|---|---|"]
    lines += [f"| {name} | {place} | {a} | {b} |" for (name, place), a, b in zip(STEPS, small, full, strict=True)]
    return "\n".join(lines)


def size_table() -> str:
    """Parameters by part."""
    recipe, large = pocket(), mini_internvl_1b()
    models = (recipe.system.model, recipe.models.teacher_vlm, large)
    counts = []
    for model in models:
        tree = _parameters(model)
        counts.append({part: sum(leaf.size for leaf in jax.tree.leaves(tree[part])) for part in sorted(tree)})
    lines = ["| part | pocket | its teacher | Mini-InternVL-1B |", "|---|---|---|---|"]
    lines += [
        f"| `{part}/` | " + " | ".join(f"{count[part]:,}" for count in counts) + " |"
        for part in ("vision", "connector", "decoder")
    ]
    lines.append("| together | " + " | ".join(f"{sum(count.values()):,}" for count in counts) + " |")
    return "\n".join(lines)


SHOWN = (
    "vision/patch_embedding/kernel",
    "vision/layers/0/attention/query/kernel",
    "connector/up/kernel",
    "decoder/embedding",
    "decoder/layers/0/attention/query/kernel",
    "decoder/layers/0/attention/key/kernel",
    "decoder/layers/0/attention/out/kernel",
    "decoder/layers/0/mlp/up/kernel",
    "decoder/layers/0/mlp/down/kernel",
    "decoder/layers/0/attention_norm/scale",
)


def sharding_table() -> str:
    """How some parameters of the 1B are split over two fsdp and four tensor devices."""
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 4})
    leaves = globs.flatten(_parameters(mini_internvl_1b()))
    lines = ["| parameter | shape | logical axes | mesh axes |", "|---|---|---|---|"]
    for path in SHOWN:
        shape, axes = leaves[path].shape, globs.last_match(path, PARAMETER_AXES, ())
        spec = partition(shape, axes, mesh)
        lines.append(f"| `{path}` | {' × '.join(map(str, shape))} | {_names(axes)} | {_names(spec)} |")
    return "\n".join(lines)


def _names(axes) -> str:
    return ", ".join("–" if axis is None else str(axis) for axis in axes) or "–"


TABLES = {"way": way_table, "sizes": size_table, "sharding": sharding_table}


def with_tables(text: str) -> str:
    """The document with every block `<!-- shapes: NAME -->` ... `<!-- /shapes -->` computed anew."""

    def block(found: re.Match) -> str:
        return f"<!-- shapes: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- /shapes -->"

    return re.sub(r"<!-- shapes: (\w+) -->.*?<!-- /shapes -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    new = with_tables(DOCUMENT.read_text())
    if "--write" in sys.argv:
        DOCUMENT.write_text(new)
    else:
        sys.stdout.write(new)
