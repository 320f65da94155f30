"""InternViT: a pre-norm vision transformer with class token, learned positions, layer scale and drop path.

Facts: `modeling_intern_vit.py` and `configuration_intern_vit.py` of OpenGVLab/InternVL. There is no final norm.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.models.attention import Attention, AttentionShape, Side
from vlm_jax.models.layers import MLP, Activation, Compute, Linear, Norm, NormKind
from vlm_jax.models.stack import init_layers, run_layers
from vlm_jax.sharding import constrain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@config_class
class VisionConfig:
    """A vision transformer. The defaults are InternViT-300M-448px.

    Attributes:
      image_size, patch_size: side of a tile and of a patch, in pixels.
      width, depth, heads, mlp_width: as usual; head_dim is width / heads.
      norm, norm_eps, activation: LayerNorm and exact GELU in InternViT-300M, RMSNorm in InternViT-6B.
      qkv_bias, qk_norm: bias on q, k, v; RMSNorm over the full width of q and of k (InternViT-6B).
      layer_scale: initial value of the learned vectors that multiply each residual branch.
      drop_path: rate at the last layer; layers rise linearly from 0 (training only).
    """

    type: Literal["vision_transformer"] = "vision_transformer"
    image_size: int = 448
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    norm: NormKind = "layer_norm"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    qkv_bias: bool = True
    qk_norm: Literal["none", "full"] = "none"
    layer_scale: float = 1.0
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"vision.heads: {self.heads} heads do not divide a width of {self.width}")
        if self.image_size % self.patch_size:
            raise UserError(f"vision.patch_size: {self.patch_size} does not divide image_size {self.image_size}")

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a tile (N)."""
        return self.grid**2


class VisionLayer(nn.Module):
    """x + drop(scale1 * attention(norm(x))), then x + drop(scale2 * mlp(norm(x)))."""

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "M N1 D"], side: Side, cache: None) -> tuple[jax.Array, None, dict[str, Any]]:
        c, dtype = self.config, self.compute.dtype
        norm = partial(Norm, c.norm, c.norm_eps, dtype)
        shape = AttentionShape(c.width, c.heads, c.heads, c.width // c.heads, c.qkv_bias, True, c.qk_norm, c.norm_eps)
        y, _ = Attention(shape, self.compute, name="attention")(norm(name="attention_norm")(x), side, None)
        x = self._add(x, y, "attention_scale", side, 0)
        y = MLP(c.mlp_width, c.activation, False, True, dtype, name="mlp")(norm(name="mlp_norm")(x))
        x = self._add(x, y, "mlp_scale", side, 1)
        return constrain(x, "batch", None, None), cache, {}

    def _add(self, x: jax.Array, y: jax.Array, name: str, side: Side, branch: int) -> jax.Array:
        scale = self.param(name, nn.initializers.constant(self.config.layer_scale), (self.config.width,))
        y = y * scale.astype(y.dtype)
        if side.residual is not None:
            y = y * side.residual[branch][:, None, None].astype(y.dtype)
        return x + y


class VisionTransformer(nn.Module):
    """Patches in, hidden states out; the class token comes first."""

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, patches: UInt8[Array, "M N PP3"], *, drop_key: jax.Array | None = None, capture: int = 0
    ) -> tuple[Float[Array, "M N1 D"], list[jax.Array]]:
        """Encodes M tiles.

        Args:
          patches: raw bytes; normalised here with ImageNet's mean and standard deviation.
          drop_key: turns drop path on (training).
          capture: how many of the last layers' outputs to return.

        Returns:
          The last hidden states [M, 1 + N, D], and the outputs of the last `capture` layers.
        """
        c = self.config
        x = Linear((c.width,), dtype=self.compute.dtype, name="patch_embedding")(normalise(patches))
        class_token = self.param("class_embedding", nn.initializers.normal(0.02), (c.width,))
        positions = self.param("position_embedding", nn.initializers.normal(0.02), (1 + c.patches, c.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token.astype(x.dtype), (x.shape[0], 1, c.width)), x], axis=1)
        x = constrain(x + positions.astype(x.dtype), "batch", None, None)
        layer = VisionLayer(c, self.compute, parent=None)
        params = self.param("layers", lambda key: init_layers(key, layer, c.depth, x, Side()))
        residual = None
        if drop_key is not None and c.drop_path > 0:
            residual = drop_path_factors(drop_key, c.depth, c.drop_path, x.shape[0])
        x, _, captured = run_layers(layer, params, x, Side(), self.compute, residual=residual, capture=capture)
        return x, captured


def normalise(patches: UInt8[Array, "M N PP3"]) -> Float[Array, "M N PP3"]:
    """Bytes to (x / 255 - mean) / std per channel, in float32; channels are the fastest axis of a patch."""
    repeats = patches.shape[-1] // 3
    mean, std = (jnp.tile(jnp.asarray(v, jnp.float32), repeats) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (patches.astype(jnp.float32) / 255.0 - mean) / std


def drop_path_factors(key: jax.Array, depth: int, rate: float, rows: int) -> Float[Array, "L 2 rows"]:
    """0 (dropped) or 1 / keep for each layer, branch and row; the rate rises linearly from 0 to `rate` over layers."""
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    return jax.random.bernoulli(key, keep, (depth, 2, rows)) / keep
