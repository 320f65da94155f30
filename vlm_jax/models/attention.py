"""Multi-head attention with grouped KV heads, rotary positions, q/k norms and a static cache: one class for all."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.layers import Compute, Linear, Norm, NormKind
from vlm_jax.models.rotary import RotaryTable, rotate
from vlm_jax.sharding import constrain

QKNorm = Literal["none", "full", "head", "head_layer_norm"]


class KVCache(NamedTuple):
    """Keys and values of one layer for S slots; slot s holds the token at position s of its row."""

    key: Float[Array, "B S G Dh"]
    value: Float[Array, "B S G Dh"]


class Side(NamedTuple):
    """What every layer may look at besides its input; `None` is "not used here".

    Attributes:
      rotary: cosines and sines, float32 [B, T, half] each; the first 2 * half channels of a head are turned.
      mask: bool [B, 1, T, S], True where query t sees key s.
      slots: int32 [B, T], the cache slot that token t is written to; out of range is not written.
      residual: float32 [2, B], what drop path multiplies the two branches of this layer with, row by row.
    """

    rotary: RotaryTable | None = None
    mask: Bool[Array, "B 1 T S"] | None = None
    slots: Int[Array, "B T"] | None = None
    residual: Float[Array, "2 B"] | None = None


class AttentionShape(NamedTuple):
    """Sizes and variants of an attention block.

    `qk_norm`, a norm of q and of k before they are turned: an RMSNorm, "full" over the flattened width of all heads
    (InternViT-6B) or "head" over each head (Qwen3), or "head_layer_norm", a LayerNorm over each head (Persimmon). All
    heads share its parameters. `causal` promises that without a cache the mask hides from a token all that stand
    behind it, so that they need not be looked at to be hidden.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    qk_norm: QKNorm = "none"
    norm_eps: float = 1e-6
    causal: bool = False


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v. The softmax runs in float32."""

    shape: AttentionShape
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], side: Side, cache: KVCache | None
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        s, dtype = self.shape, self.compute.dtype
        project = partial(Linear, use_bias=s.qkv_bias, dtype=dtype)
        q = project((s.heads, s.head_dim), name="query")(x)
        k = project((s.kv_heads, s.head_dim), name="key")(x)
        v = project((s.kv_heads, s.head_dim), name="value")(x)
        if s.qk_norm == "full":
            q, k = self._flat_norm(q, "query_norm"), self._flat_norm(k, "key_norm")
        elif s.qk_norm != "none":
            kind = "layer_norm" if s.qk_norm == "head_layer_norm" else "rms_norm"
            q, k = self._norm("query_norm", kind)(q), self._norm("key_norm", kind)(k)
        if side.rotary is not None:
            q, k = rotate(q, side.rotary), rotate(k, side.rotary)
        q, k, v = (constrain(y, "batch", None, "heads", None) for y in (q, k, v))
        if cache is not None:
            rows = jnp.arange(x.shape[0])[:, None]
            cache = KVCache(
                cache.key.at[rows, side.slots].set(k.astype(cache.key.dtype), mode="drop"),
                cache.value.at[rows, side.slots].set(v.astype(cache.value.dtype), mode="drop"),
            )
            k, v = cache
        y = attend(q, k, v, side.mask, self.compute.attention, causal=s.causal and cache is None)
        return Linear((s.width,), in_axes=2, use_bias=s.out_bias, dtype=dtype, name="out")(y), cache

    def _norm(self, name: str, kind: NormKind = "rms_norm") -> Norm:
        return Norm(kind, self.shape.norm_eps, self.compute.dtype, name=name)

    def _flat_norm(self, y: Float[Array, "B T H Dh"], name: str) -> Float[Array, "B T H Dh"]:
        flat = self._norm(name)(rearrange(y, "b t h d -> b t (h d)"))
        return rearrange(flat, "b t (h d) -> b t h d", h=y.shape[2])


def attend(
    q: Float[Array, "B T H Dh"],
    k: Float[Array, "B S G Dh"],
    v: Float[Array, "B S G Dh"],
    mask: Bool[Array, "B 1 T S"] | None,
    implementation: str,
    *,
    causal: bool = False,
) -> Float[Array, "B T H Dh"]:
    """softmax(q k^T / sqrt(Dh)) v, where H / G query heads share a KV head.

    "cudnn" is the fused kernel of GPUs. "xla" runs everywhere. Every query must see at least one key.

    Args:
      q, k, v: queries, keys and values.
      mask: True where a query sees a key; None where it sees all.
      implementation: "xla" or "cudnn".
      causal: T = S, and the mask hides every key behind its query; "xla" then leaves most of those out of the products.
    """
    assert mask is not None or not causal or q.shape[1] == 1, "what is causal is said by the mask"
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    length = q.shape[1]
    block = min(length, max(CAUSAL_BLOCK, math.ceil(length / CAUSAL_BLOCKS))) if causal else length
    parts = []
    for start in range(0, length, block):
        queries, keys = slice(start, start + block), slice(start + block) if causal else slice(None)
        seen = None if mask is None else mask[:, :, queries, keys]
        parts.append(_attend(q[:, queries], k[:, keys], v[:, keys], seen))
    return jnp.concatenate(parts, axis=1)


CAUSAL_BLOCK, CAUSAL_BLOCKS = 128, 4
"""Blocks that causal attention is done in: at least so many queries each, and so many blocks at most. A block meets the
keys up to its end: with 4 blocks 5/8 of all products remain; more would save little and take long to compile."""


def _attend(
    q: Float[Array, "B T H Dh"],
    k: Float[Array, "B S H Dh"],
    v: Float[Array, "B S H Dh"],
    mask: Bool[Array, "B 1 T S"] | None,
) -> Float[Array, "B T H Dh"]:
    """Divides by the softmax's sum after the product with v, as flash attention does: the largest array is read once
    less (forward and backward take 0.6 of the time of `jax.nn.dot_product_attention` on a CPU).
    """
    scores = jnp.einsum("bthd,bshd->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # The largest score only keeps exp in range: it cancels, so no gradient flows through it.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    total = rearrange(jnp.sum(weights, axis=-1), "b h t -> b t h 1")
    return (mixed / total).astype(q.dtype)


def packed_mask(
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    window: int | None = None,
) -> Bool[Array, "B 1 T T"]:
    """Token t sees token s when s <= t, both are of one conversation, and s is of t's branch or shared by all.

    With a `window`, s must also be among the last `window` positions up to t's. A position counts within the
    conversation and the branch, so that what stands between in the row (another branch) takes no place in the window.
    Padding sees padding, so no row is empty.
    """
    same = segments[:, :, None] == segments[:, None, :]
    visible = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    order = jnp.arange(segments.shape[1])
    mask = same & visible & (order[:, None] >= order[None, :])
    if window is not None:
        mask = mask & near(positions, positions, window)
    return mask[:, None]


def near(queries: Int[Array, "B T"], keys: Int[Array, "... S"], window: int) -> Bool[Array, "B T S"]:
    """Whether a key's position is above the query's less `window` (Mistral: a token is the first of its own window)."""
    return keys[..., None, :] > queries[:, :, None] - window
