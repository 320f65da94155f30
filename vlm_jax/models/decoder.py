"""The decoder: a causal language model with rotary positions.

Its flags make it Llama, Vicuna, TinyLlama, Yi, Mistral, Qwen2, Qwen2.5, Qwen3, InternLM2, Phi-2, Phi-3, StableLM-2,
Gemma or Persimmon; `sizes.py` has the sizes of releases.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.models.attention import (
    Attention,
    AttentionShape,
    KVCache,
    QKNorm,
    Side,
    near,
    packed_mask,
)
from vlm_jax.models.layers import MLP, Activation, Compute, Linear, Norm, NormKind
from vlm_jax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    LongRoPEScaling,
    NoScaling,
    RopeScaling,
    RotaryTable,
    packed_lengths,
    rotary_table,
)
from vlm_jax.models.stack import init_layers, run_layers
from vlm_jax.sharding import constrain


@config_class
class DecoderConfig:
    """A decoder. The defaults are Qwen2-0.5B as Mini-InternVL-1B uses it (nine tokens added, head untied).

    Attributes:
      vocab_size: rows of the embedding, added tokens included.
      width, depth, heads, kv_heads, head_dim, mlp_width: as usual.
      gated: the MLP is down(activation(gate) * up), not down(activation(up)).
      parallel: one norm in front of attention and MLP, and both are added to its input; otherwise the MLP has a norm of
        its own and follows attention.
      norm, norm_eps: of every norm but those of q and k, whose eps is the same.
      qkv_bias, out_bias: biases of attention: on q, k and v, and on what mixes the heads.
      mlp_bias, head_bias: biases on all of the MLP, and on the logits.
      qk_norm: a norm of each head of q and of k, see `AttentionShape`.
      sliding_window: how many tokens a token sees at most, itself the last of them; None is all before it.
      rope_theta: base of the rotary frequencies.
      rotary_fraction: share of a head's channels, the first ones, that are turned.
      rope_scaling: what becomes of the frequencies in long sequences, by `type`.
      scale_embeddings: token embeddings are multiplied by sqrt(width) when they are looked up (Gemma).
      tie_embeddings: the head is the transposed embedding.
      max_tokens: the longest sequence the model was trained for, before `rope_scaling`.
    """

    type: Literal["decoder"] = "decoder"
    vocab_size: int = 151655
    width: int = 896
    depth: int = 24
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    mlp_width: int = 4864
    activation: Activation = "silu"
    gated: bool = True
    parallel: bool = False
    norm: NormKind = "rms_norm"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: QKNorm = "none"
    sliding_window: int | None = None
    rope_theta: float = 1e6
    rotary_fraction: float = 1.0
    rope_scaling: RopeScaling = NoScaling()
    scale_embeddings: bool = False
    tie_embeddings: bool = False
    max_tokens: int = 32768

    @property
    def context(self) -> int:
        """The longest sequence it can be given: a linear or dynamic scaling stretches what it was trained for."""
        stretched = isinstance(self.rope_scaling, LinearScaling | DynamicScaling)
        return int(self.max_tokens * self.rope_scaling.factor) if stretched else self.max_tokens

    @property
    def rotary_channels(self) -> int:
        """How many channels of a head are turned, rounded down as `transformers` does."""
        return int(self.head_dim * self.rotary_fraction)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(f"decoder.kv_heads: {self.kv_heads} do not divide {self.heads} heads")
        if not 0 < self.rotary_fraction <= 1:
            raise UserError(f"decoder.rotary_fraction: must be above 0 and at most 1, is {self.rotary_fraction}")
        turned = self.rotary_channels
        if turned % 2 or not turned:
            field = "head_dim" if turned == self.head_dim else "rotary_fraction"
            raise UserError(f"decoder.{field}: rotary embeddings turn pairs, not {turned} of {self.head_dim} channels")
        if isinstance(self.rope_scaling, LongRoPEScaling):
            for name in ("short_factors", "long_factors"):
                count = len(getattr(self.rope_scaling, name))
                if count != turned // 2:
                    raise UserError(f"decoder.rope_scaling.{name}: {count} numbers for {turned // 2} pairs of channels")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"decoder.sliding_window: must be at least 1, or null, is {self.sliding_window}")
        if self.head_bias and self.tie_embeddings:
            raise UserError("decoder.head_bias: a head that is tied to the embedding has no bias")


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); parallel: x + attention(y) + mlp(y) with one y = norm(x)."""

    config: DecoderConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], side: Side, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None, dict[str, Any]]:
        c, dtype = self.config, self.compute.dtype
        norm = partial(Norm, c.norm, c.norm_eps, dtype)
        shape = AttentionShape(
            c.width, c.heads, c.kv_heads, c.head_dim, c.qkv_bias, c.out_bias, c.qk_norm, c.norm_eps, causal=True
        )
        mlp = MLP(c.mlp_width, c.activation, c.gated, c.mlp_bias, dtype, name="mlp")
        y = norm(name="attention_norm")(x)
        mixed, cache = Attention(shape, self.compute, name="attention")(y, side, cache)
        x = x + mixed
        x = x + mlp(y if c.parallel else norm(name="mlp_norm")(x))
        return constrain(x, "batch", None, None), cache, {}


class Decoder(nn.Module):
    """Token embeddings, layers, final norm and head, each callable alone: the visual tokens come in between."""

    config: DecoderConfig
    compute: Compute

    def setup(self) -> None:
        c = self.config
        # Visual tokens come out of a fresh connector at about this scale, and text has to be heard beside them; as a
        # head the same table would make wild logits, and what is scaled later is to begin small.
        scale = 0.02 if c.tie_embeddings or c.scale_embeddings else 0.5
        self.embedding = self.param("embedding", nn.initializers.normal(scale), (c.vocab_size, c.width))
        self.layer = DecoderLayer(c, self.compute, parent=None)
        self.layers = self.param("layers", self._init_layers)
        self.norm = Norm(c.norm, c.norm_eps, self.compute.dtype)
        if not c.tie_embeddings:
            self.head = Linear((c.vocab_size,), use_bias=c.head_bias, dtype=self.compute.dtype)

    def _init_layers(self, key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, 1, self.config.width), self.compute.dtype)
        zeros = jnp.zeros((1, 1), jnp.int32)
        return init_layers(key, self.layer, self.config.depth, x, Side(rotary=self._rotary(zeros, zeros)))

    def _rotary(self, positions: Int[Array, "B T"], lengths: Int[Array, "B T"]) -> RotaryTable:
        c = self.config
        return rotary_table(positions, lengths, c.rotary_channels, c.rope_theta, c.rope_scaling)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks the token embeddings up."""
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.compute.dtype)
        return x * math.sqrt(self.config.width) if self.config.scale_embeddings else x

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        branches: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Embeddings of packed rows to normed hidden states; attention stays within a conversation and a branch."""
        rotary = self._rotary(positions, packed_lengths(positions, segments))
        mask = packed_mask(positions, segments, branches, self.config.sliding_window)
        side = Side(rotary=rotary, mask=mask)
        x, _, _ = run_layers(self.layer, self.layers, constrain(x, "batch", None, None), side, self.compute)
        return self.norm(x)

    def step(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], caches: list[KVCache]
    ) -> tuple[Float[Array, "B T D"], list[KVCache]]:
        """Runs T further tokens of every row against the caches (prefill: T is the prompt; decoding: 1).

        A token at position p is written to slot p and sees slots 0..p, or the last of them that its window holds.
        Positions past the cache (padding) are not written and what they return is meaningless.
        """
        slots = jnp.arange(caches[0].key.shape[1])
        mask = slots <= positions[:, :, None]
        if self.config.sliding_window is not None:
            mask = mask & near(positions, slots, self.config.sliding_window)
        # Padding has positions past the caches; what is there counts no longer.
        lengths = jnp.max(jnp.where(positions < len(slots), positions, 0), axis=1, keepdims=True) + 1
        rotary = self._rotary(positions, jnp.broadcast_to(lengths, positions.shape))
        side = Side(rotary=rotary, mask=mask[:, None], slots=positions)
        x, caches, _ = run_layers(self.layer, self.layers, x, side, self.compute, caches=caches)
        return self.norm(x), caches

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Normed hidden states to float32 logits."""
        tied = self.config.tie_embeddings
        logits = hidden @ self.embedding.T.astype(hidden.dtype) if tied else self.head(hidden)
        return logits.astype(jnp.float32)


def empty_caches(config: DecoderConfig, rows: int, slots: int, dtype: str) -> list[KVCache]:
    """One zeroed cache per layer."""
    shape = (rows, slots, config.kv_heads, config.head_dim)
    return [KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.depth)]
