"""Connectors: from a tile's patch features to visual tokens of the decoder's width."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
from einops import rearrange
from jaxtyping import Array, Float

from vlm_jax.config import config_class
from vlm_jax.models.layers import ACTIVATIONS, Compute, Linear, Norm
from vlm_jax.models.vision_transformer import VisionConfig


@config_class
class PixelShuffleMLPConfig:
    """InternVL's connector: pixel shuffle, LayerNorm, Linear, GELU, Linear (`mlp1` of `modeling_internvl_chat.py`).

    Attributes:
      factor: patches folded into one token along each side (1 / downsample_ratio).
      norm_eps: of the LayerNorm.
    """

    type: Literal["pixel_shuffle_mlp"] = "pixel_shuffle_mlp"
    factor: int = 2
    norm_eps: float = 1e-5

    def tokens_per_tile(self, vision: VisionConfig) -> int:
        """How many visual tokens one tile becomes (n)."""
        return (vision.grid // self.factor) ** 2


class PixelShuffleMLP(nn.Module):
    """[M, N, C] patch features to [M, N / factor^2, D] visual tokens."""

    config: PixelShuffleMLPConfig
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, features: Float[Array, "M N C"]) -> Float[Array, "M n D"]:
        dtype = self.compute.dtype
        x = pixel_shuffle(features, self.config.factor)
        x = Norm("layer_norm", self.config.norm_eps, dtype, name="norm")(x)
        x = Linear((self.width,), dtype=dtype, name="up")(x)
        return Linear((self.width,), dtype=dtype, name="down")(ACTIVATIONS["gelu"](x))


def pixel_shuffle(features: Float[Array, "M N C"], factor: int) -> Float[Array, "M n C2"]:
    """Space to depth in the order of InternVL's `ps_version` v2: the offset inside a cell is the slow channel axis."""
    side = round(features.shape[1] ** 0.5)
    return rearrange(
        features, "m (h a w b) c -> m (h w) (a b c)", h=side // factor, a=factor, w=side // factor, b=factor
    )
