"""Recipes of systems: at their published size, and the same parts so small that a test trains them in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlm_jax.errors import UserError
from vlm_jax.training.recipe import recipe_config

TINY = "tiny"
"""The argument of a system's config that asks for the small variant."""

Fields = Mapping[str, Any]
Row = TypeVar("Row")

_TOKENS = 1024
"""Words of the tokenizer that is trained on the pocket data."""

_SIDE = 32
"""Side of the small variant's tiles, in pixels."""

_TASKS = dict(reading=1.0, photo=1.0)
"""What the small variant learns: tasks of the pocket data whose questions may be asked as captions, too."""

_ROWS = 24
"""Conversations of its batches: all that those tasks have, so that steps differ in nothing but what was learned."""


def row_of(table: Mapping[str, Row], arg: str, file: str) -> Row:
    """The row of a config's table that its argument asks for.

    Args:
      table: by argument.
      arg: the argument.
      file: of the config, for the message.

    Raises:
      UserError: there is no such row.
    """
    if arg not in table:
        raise UserError(f"{Path(file).name}:{arg}: no such argument; there are {', '.join(table)}")
    return table[arg]


def llava_stage(
    name: str,
    trainable: Sequence[str],
    sources: Fields,
    *,
    rows: int,
    learning_rate: float,
    epochs: float = 1.0,
    tokens: int = 2048,
    tiles: int = 1,
    data: Fields | None = None,
    optimizer: Fields | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A stage as LLaVA's trainer runs it, and those of the systems that were made from it.

    A conversation a row, cut where it is too long; AdamW without weight decay, warm-up over 3 % of the steps, a cosine
    to 0, gradients clipped to 1 (`scripts/v1_5/*.sh` of haotian-liu/LLaVA, and what its Trainer has as defaults).

    Args:
      name: of the stage.
      trainable: path globs.
      sources: how often an epoch holds the records of each source, by its name in the meta file.
      rows: conversations of a batch.
      learning_rate: of the step after warm-up.
      epochs: how often the sources are gone through.
      tokens: of the longest conversation, visual ones included.
      tiles: slots of a row: those that the layout makes of an image at most.
      data, optimizer: fields of the mixture and of the optimizer in which the system differs.
      fields: other fields of the stage.
    """
    mixture = dict(rows=rows, tokens=tokens, tiles=tiles, packing=False, too_long="truncate", weights=dict(sources))
    adamw = dict(learning_rate=learning_rate, weight_decay=0.0, warmup_ratio=0.03)
    return dict(
        name=name,
        objective=dict(type="generate"),
        trainable=list(trainable),
        epochs=epochs,
        data={**mixture, **(data or {})},
        optimizer={**adamw, **(optimizer or {})},
        **fields,
    )


def system_recipe(
    size: str,
    *,
    name: str,
    vision: Fields,
    connector: Fields,
    decoder: Fields,
    layout: Fields,
    template: str,
    stages: Sequence[Fields],
    vectors: Sequence[str] = (),
) -> Any:
    """The recipe of a system.

    At its published size it starts from a tower's and a language model's folder (`--config.start.vision`,
    `--config.start.decoder`) or from a model's (`--config.start.model`), and learns from InternVL's kind of meta file
    (`--config.data.train`), whose sources the stages name. As `tiny` it starts from nothing and learns from the pocket
    data: every flag, layout, prompt format and stage stays, only sizes, steps and batches shrink.

    Args:
      size: argument of the config: `tiny`, or the name of the size that the other arguments have.
      name: of the system.
      vision, connector, decoder: fields of the model's parts.
      layout: fields of the image layout.
      template: prompt format.
      stages: fields of the stages.
      vectors: the model's learned vectors.
    """
    tiny = size == TINY
    if tiny:
        stages = [_tiny_stage(stage, vision.get("image_size", _SIDE)) for stage in stages]
        vision, layout, decoder = _tiny_vision(vision), _tiny_layout(layout), _tiny_decoder(decoder)
    model = dict(vision=dict(vision), connector=dict(connector), decoder=dict(decoder), vectors=tuple(vectors))
    system = dict(model=model, layout=dict(layout), template=template)
    recipe = dict(name=f"{name}-{size.replace(',', '-')}", system=system, stages=list(stages))
    if tiny:
        return recipe_config(
            **recipe,
            tokenizer_size=_TOKENS,
            data=dict(type="pocket", preset="tiny"),
            evaluation=dict(limit=2, watch=0, controls=(), max_new_tokens=8),
        )
    return recipe_config(
        **recipe,
        start=dict(model="", vision="", decoder=""),
        data=dict(type="meta", train=""),
        compute=dict(dtype="bfloat16", scan_layers=True, remat="full"),
        runtime=dict(mesh=dict(data=1, fsdp=-1), checkpoint_seconds=1800.0),
    )


def _tiny_vision(vision: Fields) -> dict[str, Any]:
    if vision.get("type") == "patch_projection":
        return {**vision, "patch_size": 8, "width": 80, "patches": 8}
    small = dict(image_size=_SIDE, patch_size=8, width=24, depth=3, heads=2, mlp_width=48, drop_path=0.0)
    return {**vision, **small}


def _tiny_layout(layout: Fields) -> dict[str, Any]:
    if layout.get("type") == "native_raster":
        sides = tuple(side * 48 // max(layout["sides"]) for side in layout.get("sides", ()))
        return {**layout, "patch_size": 8, "max_width": 48, "max_height": 48, "slot": 8, "sides": sides}
    return {**layout, "tile_size": _SIDE}


def _tiny_decoder(decoder: Fields) -> dict[str, Any]:
    """Forty channels a head, of which every published share (1, 1/2, 2/5, 1/4) is an even number."""
    grouped = decoder["kv_heads"] != decoder["heads"]
    small = dict(vocab_size=_TOKENS + 32, width=80, depth=2, heads=2, kv_heads=1 if grouped else 2, head_dim=40)
    window = {"sliding_window": 32} if decoder.get("sliding_window") else {}
    return {**decoder, **small, **window, "mlp_width": 96, "max_tokens": 2048}


def _tiny_stage(stage: Fields, side: int) -> dict[str, Any]:
    """A few steps on the same conversations. A stage's size of tiles keeps its ratio to the system's (224 to 448)."""
    small = dict(rows=_ROWS, tokens=None, tiles=None, weights=_TASKS)
    data = {**stage["data"], **small, "cap": min(stage["data"].get("cap", 0), 6)}
    optimizer = {**stage["optimizer"], "learning_rate": 6e-3, "warmup_ratio": 0.0, "schedule": "constant"}
    changes: dict[str, Any] = dict(epochs=0.0, steps=6, data=data, optimizer=optimizer)
    if stage.get("image_size"):
        changes["image_size"] = _SIDE * stage["image_size"] // side
    if stage.get("tune_from_layer"):
        changes["tune_from_layer"] = dict.fromkeys(stage["tune_from_layer"], 1)
    return {**stage, **changes}
