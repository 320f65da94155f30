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
from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.models.attention import KVCache
from vlm_jax.models.connector import PixelShuffleMLP, PixelShuffleMLPConfig
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionConfig, VisionTransformer

Params = Mapping[str, Any]


@config_class
class VLMConfig:
    """A vision-language model: one config per part, told apart by their `type`."""

    vision: VisionConfig
    connector: PixelShuffleMLPConfig
    decoder: DecoderConfig

    def __post_init__(self) -> None:
        if self.vision.grid % self.connector.factor:
            raise UserError(
                f"connector.factor: {self.connector.factor} does not divide the {self.vision.grid} patches along a tile"
            )

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
        self.vision = VisionTransformer(c.vision, self.compute)
        self.connector = PixelShuffleMLP(c.connector, c.decoder.width, self.compute)
        self.decoder = Decoder(c.decoder, self.compute)

    def encode(self, patches: jax.Array, drop_key: jax.Array | None = None) -> Float[Array, "B Kn D"]:
        """Tiles [B, K, N, PP3] to this row's K*n visual tokens."""
        rows = patches.shape[0]
        features, _ = self.vision(rearrange(patches, "b k n p -> (b k) n p"), drop_key=drop_key)
        visual = self.connector(features[:, self.config.vision.first_patch :])  # a class token is not handed on
        return rearrange(visual, "(b k) n d -> b (k n) d", b=rows)

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


def init_connector(config: VLMConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of the connector alone, without its prefix."""
    connector = PixelShuffleMLP(config.connector, config.decoder.width, Compute())
    return connector.init(key, jnp.zeros((1, config.vision.patches, config.vision.width)))["params"]


def init_decoder(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of a decoder alone, under `decoder/`."""

    def run(decoder: Decoder, zeros: jax.Array) -> jax.Array:
        return decoder.logits(decoder(decoder.embed(zeros), zeros, zeros, zeros))

    return {"decoder": nn.init(run, Decoder(config, Compute()))(key, jnp.zeros((1, 1), jnp.int32))["params"]}


def init_params(config: VLMConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters as a plain nested dict."""
    shape = BatchShape(rows=1, tokens=2, tiles=1, patches=config.vision.patches, patch_values=config.patch_values)
    return VLM(config).init(key, empty_batch(shape))["params"]
