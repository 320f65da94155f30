"""The composed model: vision encoder, connector, decoder, and the gather that puts visual tokens into the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from vlm_jax.batch import Batch, BatchShape, empty_batch
from vlm_jax.config import config_class, one_of
from vlm_jax.errors import UserError
from vlm_jax.models.attention import KVCache
from vlm_jax.models.connector import Connector, ConnectorConfig
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.layers import Compute
from vlm_jax.models.patch_projection import PatchProjectionConfig
from vlm_jax.models.vision_transformer import VisionConfig

Params = Mapping[str, Any]

PARTS = ("vision", "connector", "decoder")
"""First parts of the paths of a model's parameters; what has no parameters is not there."""

AnyVisionConfig = one_of(VisionConfig, PatchProjectionConfig)


@config_class
class VLMConfig:
    """A vision-language model: one config per part, told apart by their `type`.

    Attributes:
      vision: what sees.
      connector: from there to visual tokens.
      decoder: what reads them and writes.
      vectors: names of learned vectors that stand between visual tokens (see `Layout.vectors`), kept as
        `connector/<name>`.
    """

    vision: AnyVisionConfig
    connector: ConnectorConfig
    decoder: DecoderConfig
    vectors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.connector.check(self.vision, self.decoder.width)
        if len(set(self.vectors)) != len(self.vectors) or not all(name.isidentifier() for name in self.vectors):
            raise UserError(f"model.vectors: must be different names, got {', '.join(self.vectors)}")

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens that one tile becomes (n)."""
        return self.connector.tokens_per_tile(self.vision)

    @property
    def patch_values(self) -> int:
        """Bytes of one patch (P*P*3)."""
        return self.vision.patch_size**2 * 3


class VLM(nn.Module):
    """Parameters live under `vision/`, `connector/` and `decoder/`."""

    config: VLMConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        c = self.config
        self.vision = c.vision.module(self.compute)
        self.connector = Connector(c.connector, c.vectors, c.decoder.width, self.compute)
        self.decoder = Decoder(c.decoder, self.compute)

    def encode(self, patches: jax.Array, drop_key: jax.Array | None = None) -> Float[Array, "B S D"]:
        """Tiles [B, K, N, PP3] to what `Batch.splice` counts: the row's K*n visual tokens, then the learned vectors."""
        rows = patches.shape[0]
        features, _ = self.vision(rearrange(patches, "b k n p -> (b k) n p"), drop_key=drop_key)
        visual = self.connector(features[:, self.config.vision.first_patch :])  # a class token is not handed on
        visual = rearrange(visual, "(b k) n d -> b (k n) d", b=rows)
        if not self.config.vectors:
            return visual
        learned = self.connector.learned()
        return jnp.concatenate([visual, jnp.broadcast_to(learned, (rows, *learned.shape))], axis=1)

    def embed(
        self, tokens: Int[Array, "B T"], splice: Int[Array, "B T"], visual: Float[Array, "B S D"]
    ) -> Float[Array, "B T D"]:
        """Text embeddings, with visual token `splice` wherever it is not negative."""
        text = self.decoder.embed(tokens)
        picked = jnp.take_along_axis(visual, jnp.maximum(splice, 0)[..., None], axis=1)
        return jnp.where((splice >= 0)[..., None], picked.astype(text.dtype), text)

    def hidden(self, batch: Batch, drop_key: jax.Array | None = None) -> Float[Array, "B T D"]:
        """Normed hidden states of packed rows: what the head, or a chunked loss, goes on from."""
        x = self.embed(batch.tokens, batch.splice, self.encode(batch.patches, drop_key))
        return self.decoder(x, batch.positions, batch.segments, batch.branches)

    def __call__(self, batch: Batch) -> Float[Array, "B T V"]:
        """float32 logits of packed rows; for checking, not speed."""
        return self.decoder.logits(self.hidden(batch))

    def prefill(self, batch: Batch, caches: list[KVCache]) -> tuple[Float[Array, "B T D"], list[KVCache]]:
        """Runs one unpacked conversation a row; padding must have positions past the caches."""
        x = self.embed(batch.tokens, batch.splice, self.encode(batch.patches))
        return self.decoder.step(x, batch.positions, caches)

    def decode(
        self, tokens: Int[Array, "B 1"], positions: Int[Array, "B 1"], caches: list[KVCache]
    ) -> tuple[Float[Array, "B V"], list[KVCache]]:
        """One more text token a row: float32 logits of the next."""
        hidden, caches = self.decoder.step(self.decoder.embed(tokens), positions, caches)
        return self.decoder.logits(hidden)[:, 0], caches


def head(params: Params, config: DecoderConfig) -> tuple[Float[Array, "D V"], Float[Array, " V"] | None]:
    """Kernel and bias, if there is one, from hidden states to logits, for losses that never hold all logits."""
    decoder = params["decoder"]
    if config.tie_embeddings:
        return decoder["embedding"].T, None
    return decoder["head"]["kernel"], decoder["head"].get("bias")


def init_decoder(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of a decoder alone, under `decoder/`."""

    def run(decoder: Decoder, zeros: jax.Array) -> jax.Array:
        return decoder.logits(decoder(decoder.embed(zeros), zeros, zeros, zeros))

    return {"decoder": nn.init(run, Decoder(config, Compute()))(key, jnp.zeros((1, 1), jnp.int32))["params"]}


def init_params(config: VLMConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters as a plain nested dict."""
    shape = BatchShape(rows=1, tokens=2, tiles=1, patches=config.vision.patches, patch_values=config.patch_values)
    return VLM(config).init(key, empty_batch(shape))["params"]
