"""Weighted cross-entropy that never holds all logits: at 151 655 words they would be 1.2 GB for one row of 2048."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.batch import Batch
from vlm_jax.sharding import constrain


def next_token_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What position t predicts: `tokens[t + 1]` with its weight (the last position predicts nothing)."""
    targets = jnp.roll(batch.tokens, -1, axis=1)
    weights = jnp.roll(batch.loss_weights, -1, axis=1).at[:, -1].set(0.0)
    return targets, weights


def cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int = 512,
    bias: Float[Array, " V"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log softmax(hidden @ kernel + bias)[targets] over all positions, in float32.

    Positions with weight are moved to the front of their row, and the logits of `chunk` positions a row exist at a
    time, in the forward and again in the backward pass. Chunks without any weight (most of a conversation is prompt and
    visual tokens) are not computed.

    Returns:
      The weighted sum, and the weighted sum of positions whose best word is the target. Divide both by the sum of
      weights over the *global* batch.
    """
    length = hidden.shape[1]
    chunk = max(c for c in range(1, min(chunk, max(1, length // 8)) + 1) if length % c == 0)
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=1)
    targets, weights = (jnp.take_along_axis(x, order, axis=1) for x in (targets, weights))
    return _cross_entropy(chunk, hidden, (kernel, bias), targets, weights)


def _chunks(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, ...] to [T / chunk, B, chunk, ...]: rows stay whole, so a split batch stays split."""
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], a.shape[1] // chunk, chunk, *a.shape[2:]), 1, 0) for a in arrays)


Head = tuple[jax.Array, jax.Array | None]
"""Kernel and bias."""


def _logits(hidden: jax.Array, head: Head) -> jax.Array:
    kernel, bias = head
    logits = jnp.einsum("btd,dv->btv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    return constrain(logits, "batch", None, "vocab")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(chunk: int, hidden: Any, head: Head, targets: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    return _forward(chunk, hidden, head, targets, weights)[0]


def _forward(chunk: int, hidden: Any, head: Head, targets: Any, weights: Any) -> Any:
    def compute(h: Any, t: Any, w: Any) -> Any:
        logits = _logits(h, head)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0]
        right = jnp.sum(w * (picked >= jnp.max(logits, axis=-1)))
        return (jnp.sum(w * (log_z - picked)), right), log_z

    def skip(h: Any, t: Any, w: Any) -> Any:
        del h, t
        return (zero, zero), jnp.zeros(w.shape, jnp.float32)

    def body(sums: Any, item: Any) -> Any:
        part, log_z = jax.lax.cond(jnp.any(item[2] != 0), compute, skip, *item)
        return (sums[0] + part[0], sums[1] + part[1]), log_z

    zero = jnp.zeros((), jnp.float32)
    sums, log_z = jax.lax.scan(body, (zero, zero), _chunks(chunk, hidden, targets, weights))
    return sums, (hidden, head, targets, weights, log_z)


def _backward(chunk: int, saved: Any, cotangents: Any) -> Any:
    hidden, head, targets, weights, log_z = saved
    kernel, scale = head[0], cotangents[0]

    def compute(d_head: Head, h: Any, t: Any, w: Any, z: Any) -> Any:
        d_logits = jnp.exp(_logits(h, head) - z[..., None])
        d_logits = d_logits - jax.nn.one_hot(t, kernel.shape[1], dtype=jnp.float32)
        d_logits = (d_logits * (w * scale)[..., None]).astype(h.dtype)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, kernel.astype(h.dtype))
        d_kernel, d_bias = d_head
        d_kernel = d_kernel + jnp.einsum("btd,btv->dv", h, d_logits, preferred_element_type=jnp.float32)
        d_bias = None if d_bias is None else d_bias + jnp.sum(d_logits, axis=(0, 1), dtype=jnp.float32)
        return (d_kernel, d_bias), d_hidden

    def skip(d_head: Head, h: Any, t: Any, w: Any, z: Any) -> Any:
        del t, w, z
        return d_head, jnp.zeros_like(h)

    def body(d_head: Head, item: Any) -> Any:
        return jax.lax.cond(jnp.any(item[2] != 0), compute, skip, d_head, *item)

    items = (*_chunks(chunk, hidden, targets, weights), log_z)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), head)
    d_head, d_hidden = jax.lax.scan(body, zeros, items)
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    return d_hidden, jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, head), None, None


_cross_entropy.defvjp(_forward, _backward)
