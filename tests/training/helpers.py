"""A recipe so small that a step takes milliseconds, and batches of noise for it."""

import jax
import numpy as np

from vlm_jax.batch import Batch, BatchShape, empty_batch
from vlm_jax.sharding import MeshConfig, make_mesh
from vlm_jax.training import loop
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.log import Clock
from vlm_jax.training.workdir import Workdir

TILE, PATCH = 16, 4


def recipe_fields(**changes):
    """Plain fields of a two-stage recipe. Heads, KV heads and vocabulary do not divide by two or four on purpose."""
    vision = dict(image_size=TILE, patch_size=PATCH, width=12, depth=2, heads=3, mlp_width=20, drop_path=0.1)
    decoder = dict(
        vocab_size=331, width=24, depth=2, heads=3, kv_heads=1, head_dim=8, mlp_width=40, rope_theta=1e4, max_tokens=128
    )
    data = dict(rows=8, tokens=48, tiles=3)
    generate = dict(type="generate")
    fields = dict(
        name="test",
        system=dict(
            model=dict(vision=vision, connector=dict(), decoder=decoder), layout=dict(tile_size=TILE, max_tiles=2)
        ),
        teacher=dict(vision={**vision, "width": 24, "depth": 2}, connector=dict()),
        data=dict(type="tfds", directory="nowhere"),
        stages=[
            dict(name="distill", objective=dict(type="distill", layers=2), trainable=["vision/**", "distillation/**"],
                 steps=5, data=data),
            dict(name="tune", objective=generate, trainable=["**"], steps=6, data=data,
                 optimizer=dict(learning_rate=1e-2)),
        ],
    )  # fmt: skip
    return {**fields, **changes}


def noise_batch(rows=8, tokens=48, tiles=3, vocab=331, seed=0) -> Batch:
    """Two conversations, the second in two branches, and padding a row; the first tiles are real, the last is empty."""
    rng = np.random.default_rng(seed)
    visual = (TILE // PATCH // 2) ** 2
    shape = BatchShape(rows, tokens, tiles, (TILE // PATCH) ** 2, PATCH * PATCH * 3)
    batch = empty_batch(shape)
    for row in range(rows):
        cut, end = rng.integers(16, 24), rng.integers(34, tokens)
        batch.tokens[row, :end] = rng.integers(0, vocab, end)
        batch.loss_weights[row, :end] = (rng.random(end) < 0.4) * rng.random(end)
        batch.segments[row, :cut], batch.segments[row, cut:end] = 1, 2
        batch.positions[row, :cut], batch.positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
        shared, split = cut + 2 + visual, (cut + 2 + visual + end) // 2  # the second conversation has two branches
        batch.branches[row, shared:split], batch.branches[row, split:end] = 1, 2
        batch.positions[row, split:end] = shared - cut + np.arange(end - split)
        batch.tile_grid[row, : tiles - 1] = TILE // PATCH
        batch.tile_segment[row, 0], batch.tile_segment[row, 1] = 1, 2
        batch.patches[row, : tiles - 1] = rng.integers(0, 256, batch.patches[row, : tiles - 1].shape)
        batch.splice[row, 2 : 2 + visual] = np.arange(visual)
        batch.splice[row, cut + 2 : cut + 2 + visual] = visual + np.arange(visual)
    return batch


class Memory(list):
    """Records in memory, as a source."""

    name = "memory"


def start(recipe, folder, splits, tokenizer, interrupt=None, devices=1, mesh=None, ask=None):
    """Trains in `folder`, or goes on there."""
    workdir = Workdir(folder)
    workdir.open(recipe)
    mesh = make_mesh(mesh or MeshConfig(), jax.devices()[:devices])
    quarantine = loop.open_quarantine(recipe, workdir, splits)
    return loop.train(
        recipe, workdir, splits, tokenizer, mesh, Clock(), interrupt or Interrupt(), quarantine, None, ask
    )
