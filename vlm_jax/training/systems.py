"""Recipes of systems: at their published size, and the same parts so small that a test trains them in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.training.recipe import recipe_config

TINY = "tiny"
"""The argument of a system's config that asks for the small variant."""

_TOKENS = 1024
"""Words of the tokenizer that is trained on the pocket data."""

_SIDE = 32
"""Side of the small variant's tiles, in pixels."""


def system_recipe(
    size: str,
    *,
    name: str,
    vision: Mapping[str, Any],
    connector: Mapping[str, Any],
    decoder: Mapping[str, Any],
    layout: Mapping[str, Any],
    template: str,
    stages: Sequence[Mapping[str, Any]],
    vectors: Sequence[str] = (),
    system_prompt: str | None = None,
) -> Any:
    """The recipe of a system.

    At its published size it starts from a tower's and a language model's folder (`--config.start.vision`,
    `--config.start.decoder`) and learns from InternVL's kind of meta file (`--config.data.train`), whose sources the
    stages name. As `tiny` it starts from nothing and learns from the pocket data: every flag, layout and stage stays,
    only sizes, steps and batches shrink.

    Args:
      size: argument of the config: `tiny`, or the name of the size that the other arguments have.
      name: of the system.
      vision, connector, decoder: fields of the model's parts.
      layout: fields of the image layout.
      template: prompt format.
      stages: fields of the stages; `objective` is next-token cross-entropy where they do not say it.
      vectors: the model's learned vectors.
      system_prompt: as in `System`.
    """
    full = [{"objective": dict(type="generate"), **stage} for stage in stages]
    tiny = size == TINY
    if tiny:
        full = [_tiny_stage(stage, vision.get("image_size", _SIDE)) for stage in full]
        vision, layout, decoder = _tiny_vision(vision), _tiny_layout(layout), _tiny_decoder(decoder)
    model = dict(vision=dict(vision), connector=dict(connector), decoder=dict(decoder), vectors=tuple(vectors))
    system = dict(model=model, layout=dict(layout), template=template, system_prompt=system_prompt)
    recipe = dict(name=f"{name}-{size}", system=system, stages=full)
    if tiny:
        evaluation = dict(limit=2, watch=0, controls=(), max_new_tokens=4)
        return recipe_config(
            **recipe, tokenizer_size=_TOKENS, data=dict(type="pocket", preset="tiny"), evaluation=evaluation
        )
    return recipe_config(
        **recipe,
        start=dict(model="", vision="", decoder=""),
        data=dict(type="meta", train=""),
        compute=dict(dtype="bfloat16", scan_layers=True, remat="full"),
        runtime=dict(mesh=dict(data=1, fsdp=-1), checkpoint_seconds=1800.0),
    )


def _tiny_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    if vision.get("type") == "patch_projection":
        return {**vision, "patch_size": 8, "width": 80, "patches": 8}
    small = dict(image_size=_SIDE, patch_size=8, width=24, depth=3, heads=2, mlp_width=48, drop_path=0.0)
    return {**vision, **small}


def _tiny_layout(layout: Mapping[str, Any]) -> dict[str, Any]:
    if layout.get("type") == "native_raster":
        return {**layout, "patch_size": 8, "max_width": 48, "max_height": 48, "slot": 8}
    return {**layout, "tile_size": _SIDE}


def _tiny_decoder(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Forty channels a head, of which every published share (1, 1/2, 2/5, 1/4) is an even number."""
    grouped = decoder["kv_heads"] != decoder["heads"]
    small = dict(vocab_size=_TOKENS + 32, width=80, depth=2, heads=2, kv_heads=1 if grouped else 2, head_dim=40)
    window = {"sliding_window": 32} if decoder.get("sliding_window") else {}
    return {**decoder, **small, **window, "mlp_width": 96, "max_tokens": 2048}


def _tiny_stage(stage: Mapping[str, Any], side: int) -> dict[str, Any]:
    data = dict(rows=4, tokens=320, tiles=8, packing=True, weights=dict(digits=1.0, photo=1.0))
    optimizer = {**stage.get("optimizer", {}), "learning_rate": 3e-3, "warmup_ratio": 0.0, "schedule": "constant"}
    layers = dict.fromkeys(stage.get("tune_from_layer", {}), 1)
    # Sizes of stages keep their ratio to the system's (Yi-VL's 224 to 448).
    size = {"image_size": _SIDE * stage["image_size"] // side} if stage.get("image_size") else {}
    return {**stage, **size, "epochs": 0.0, "steps": 8, "data": data, "optimizer": optimizer, "tune_from_layer": layers}
