"""A stack of equal layers: parameters under `layers/0`, `layers/1`, ... and one function that runs them.

Parameters are kept one dict per layer, because paths are the public interface (freezing, learning rates, conversion,
checkpoints). To scan, they are stacked inside the compiled step: in bfloat16 that copy is the cast one needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.attention import Side
from vlm_jax.models.layers import Compute


def init_layers(key: jax.Array, layer: nn.Module, depth: int, x: jax.Array, side: Side) -> dict[str, Any]:
    """Fresh parameters of `depth` layers, each from its own key."""
    keys = jax.random.split(key, depth)
    return {str(i): layer.init(keys[i], x, side, None)["params"] for i in range(depth)}


def run_layers(
    layer: nn.Module,
    params: Mapping[str, Any],
    x: jax.Array,
    side: Side,
    compute: Compute,
    *,
    caches: list[Any] | None = None,
    residual: jax.Array | None = None,
    capture: int = 0,
) -> tuple[jax.Array, list[Any] | None, list[jax.Array]]:
    """Runs all layers in order.

    Args:
      layer: the unbound layer, of signature layer(x, side, cache) -> (x, cache, aux).
      params: {"0": parameters of layer 0, ...}.
      x: [B, T, D].
      side: what all layers see.
      compute: `scan_layers` loops in the compiled program (without caches only: decoding always runs unrolled, which
        is faster); `remat` as it says.
      caches: one per layer, or None.
      residual: float32 [L, 2, B], drop path's factors for every layer, or None.
      capture: how many of the last layers' outputs to return as well.

    Returns:
      The output, the new caches, and the outputs of the last `capture` layers in order.
    """
    depth = len(params)

    def apply(p: Any, x: jax.Array, r: jax.Array | None, cache: Any) -> tuple[jax.Array, Any]:
        y, cache, _ = layer.apply({"params": p}, x, side._replace(residual=r), cache)
        return y, cache

    apply = _rematerialised(apply, compute.remat)
    scanned = depth - capture if compute.scan_layers and caches is None else 0
    if scanned > 1:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[str(i)] for i in range(scanned)))
        head = residual[:scanned] if residual is not None else None
        x, _ = jax.lax.scan(lambda x, item: (apply(item[0], x, item[1], None)[0], None), x, (stacked, head))
    else:
        scanned = 0
    captured = []
    new_caches: list[Any] | None = None if caches is None else []
    for i in range(scanned, depth):
        r = None if residual is None else residual[i]
        x, cache = apply(params[str(i)], x, r, None if caches is None else caches[i])
        if new_caches is not None:
            new_caches.append(cache)
        if i >= depth - capture:
            captured.append(x)
    return x, new_caches, captured


def _rematerialised(apply: Callable[..., Any], remat: str) -> Callable[..., Any]:
    if remat == "none":
        return apply
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(apply, policy=policy)
