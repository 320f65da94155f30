"""One pre-norm vision transformer with learned positions: InternViT, CLIP's, SigLIP's, DINOv2's are settings of it.

Facts: `modeling_intern_vit.py` and `configuration_intern_vit.py` of OpenGVLab/InternVL; `models/{clip,siglip,dinov2}/`
of `transformers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Float, UInt8

from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.models.attention import Attention, AttentionShape, Side
from vlm_jax.models.layers import MLP, Activation, Compute, Linear, Norm, NormKind
from vlm_jax.models.positions import resize_positions
from vlm_jax.models.stack import init_layers, run_layers
from vlm_jax.sharding import constrain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@config_class
class VisionConfig:
    """A vision transformer. The defaults are InternViT-300M-448px.

    What differs between the towers that are released:

    | | InternViT-300M | InternViT-6B | CLIP | SigLIP | DINOv2 |
    |---|---|---|---|---|---|
    | `norm`, `qk_norm`, `qkv_bias` | LayerNorm, none, yes | RMSNorm, full, no | as 300M | as 300M | as 300M |
    | `activation` | `gelu` | `gelu` | `quick_gelu`, OpenCLIP's `gelu` | `gelu_tanh` | `gelu` |
    | `class_token`, `patch_bias` | yes, yes | yes, yes | yes, no | no, yes | yes, yes |
    | `embedding_norm` | no | no | yes | no | no |
    | norm behind the last layer | none | none | `pooling_norm` | `final_norm` | `final_norm` |
    | `layer_scale` | 1.0 | 0.1 | None | None | 1.0 |
    | `mean`, `std` | ImageNet's | ImageNet's | CLIP's own | 0.5 | ImageNet's |

    Attributes:
      image_size, patch_size: side of a tile and of a patch, in pixels. Pixels right and below that make no whole patch
        are not seen (SigLIP's 384 = 27 * 14 + 6), as by a convolution without padding. The table of positions is one
        for tiles of this size; for others it is interpolated (the tower's `grid`).
      width, depth, heads, mlp_width: as usual; head_dim is width / heads.
      norm, norm_eps: of every norm.
      activation: of the MLPs.
      qkv_bias, qk_norm: bias on q, k, v; RMSNorm over the full width of q and of k.
      layer_scale: initial value of the learned vectors that multiply each residual branch; None for none.
      drop_path: rate at the last of `depth` layers; layers rise linearly from 0 (training only).
      class_token: a learned token, with a position of its own, stands before the patches.
      patch_bias: bias of the patch embedding.
      embedding_norm: a norm of patches plus positions before the first layer (CLIP's `pre_layrnorm`).
      final_norm: a norm of all tokens after the last layer (SigLIP's `post_layernorm`, DINOv2's `layernorm`).
      pooling_norm: in its place, a norm that the release has after the last layer for what it pools, and that no
        feature passes (CLIP's `post_layernorm`). Its parameters are held, so that nothing of a release is lost.
      feature_layer: which hidden state is handed on, counted as in `hidden_states` of `transformers`: 0 is what enters
        the first layer, k the output of layer k (from 1), -1 that of the last, -2 of the last but one (LLaVA's). Layers
        behind it are held, but not run; `final_norm` is part of -1 alone.
      position_waves: amplitude of `waves` in the initial values of the learned positions. Where a tower begins from
        nothing it learns sooner where things are; what is loaded into it knows nothing of this.
      mean, std: of each channel, for pixels in 0..1; what enters the patch embedding is (pixel - mean) / std.
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
    layer_scale: float | None = 1.0
    drop_path: float = 0.1
    class_token: bool = True
    patch_bias: bool = True
    embedding_norm: bool = False
    final_norm: bool = False
    pooling_norm: bool = False
    feature_layer: int = -1
    position_waves: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"vision.heads: {self.heads} heads do not divide a width of {self.width}")
        if not 1 <= self.patch_size <= self.image_size:
            raise UserError(f"vision.patch_size: must lie in 1..image_size ({self.image_size}), got {self.patch_size}")
        if not -self.depth - 1 <= self.feature_layer <= self.depth:
            allowed = f"{-self.depth - 1}..{self.depth}"
            raise UserError(
                f"vision.feature_layer: must lie in {allowed} ({self.depth} layers), got {self.feature_layer}"
            )
        if self.final_norm and self.pooling_norm:
            raise UserError("vision.pooling_norm: it stands in the place of final_norm, not beside it")
        if not 0 <= self.position_waves < math.inf:
            raise UserError(f"vision.position_waves: must be finite and at least 0, got {self.position_waves}")
        if min(self.std) <= 0:
            raise UserError(f"vision.std: must be positive, got {self.std}")

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a tile (N)."""
        return self.grid**2

    @property
    def first_patch(self) -> int:
        """Index of the first patch among the tokens: 1 after a class token, else 0."""
        return int(self.class_token)

    @property
    def tokens(self) -> int:
        """Tokens of a tile inside the transformer (N1): its patches and the class token, if there is one."""
        return self.first_patch + self.patches

    @property
    def layers_run(self) -> int:
        """How many of the layers lie before the hidden state that is handed on."""
        return self.feature_layer % (self.depth + 1)

    @property
    def last_norm(self) -> str | None:
        """Name of the norm behind the last layer; None where there is none."""
        return "final_norm" if self.final_norm else "pooling_norm" if self.pooling_norm else None

    @property
    def normed(self) -> bool:
        """Whether what is handed on has passed the norm behind the last layer."""
        return self.final_norm and self.layers_run == self.depth

    @property
    def unused(self) -> tuple[str, ...]:
        """Globs, below `vision/`, of parameters that are held for the release's sake: no forward pass reads them."""
        layers = tuple(f"layers/{i}/**" for i in range(self.layers_run, self.depth))
        return layers if self.last_norm is None or self.normed else (*layers, f"{self.last_norm}/*")

    def resized(self, side: int) -> VisionConfig:
        """The same transformer for tiles of `side` pixels."""
        return dataclasses.replace(self, image_size=side)

    def module(self, compute: Compute) -> VisionTransformer:
        """The network."""
        return VisionTransformer(self, compute)


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
        if self.config.layer_scale is not None:
            scale = self.param(name, nn.initializers.constant(self.config.layer_scale), (self.config.width,))
            y = y * scale.astype(y.dtype)
        if side.residual is not None:
            y = y * side.residual[branch][:, None, None].astype(y.dtype)
        return x + y


class VisionTransformer(nn.Module):
    """Patches in, hidden states out; the class token, if there is one, comes first."""

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(
        self,
        patches: UInt8[Array, "M N PP3"],
        *,
        grid: tuple[int, int] | None = None,
        drop_key: jax.Array | None = None,
        capture: int = 0,
    ) -> tuple[Float[Array, "M N1 D"], list[jax.Array]]:
        """Encodes M tiles.

        Args:
          patches: raw bytes; normalised here with the config's mean and standard deviation.
          grid: patches down and across in every tile, where that is not the config's grid: positions are interpolated
            then, as by `interpolate_pos_encoding` in `transformers`.
          drop_key: turns drop path on (training).
          capture: how many of the last layers' outputs to return, of those that are run.

        Returns:
          The hidden states [M, N1, D] of the config's `feature_layer`, and the outputs of the last `capture` layers
          before it, without any final norm.

        Raises:
          ValueError: there are more or fewer patches than the grid has.
        """
        c, dtype = self.config, self.compute.dtype
        down, across = grid or (c.grid, c.grid)
        if patches.shape[1] != down * across:
            raise ValueError(f"{patches.shape[1]} patches of a tile are not a grid of {down} x {across}")
        x = normalise(patches, c.mean, c.std)
        x = Linear((c.width,), use_bias=c.patch_bias, dtype=dtype, name="patch_embedding")(x)
        if c.class_token:
            token = self.param("class_embedding", nn.initializers.normal(0.02), (c.width,))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, c.width)), x], axis=1)
        positions = self.param("position_embedding", _init_positions, c)
        positions = resize_positions(positions, c.grid, (down, across), c.class_token)
        x = constrain(x + positions.astype(x.dtype), "batch", None, None)
        if c.embedding_norm:
            x = Norm(c.norm, c.norm_eps, dtype, name="embedding_norm")(x)
        layer = VisionLayer(c, self.compute, parent=None)
        params = self.param("layers", lambda key: init_layers(key, layer, c.depth, x, Side()))
        params = {str(i): params[str(i)] for i in range(c.layers_run)}
        residual = None
        if drop_key is not None and c.drop_path > 0:
            residual = drop_path_factors(drop_key, c.depth, c.drop_path, x.shape[0])[: c.layers_run]
        x, _, captured = run_layers(layer, params, x, Side(), self.compute, residual=residual, capture=capture)
        if c.normed or (c.last_norm and self.is_initializing()):  # parameters are made of what is not used, too
            normed = Norm(c.norm, c.norm_eps, dtype, name=c.last_norm)(x)
            x = normed if c.normed else x
        return x, captured


def _init_positions(key: jax.Array, config: VisionConfig) -> Float[Array, "N1 D"]:
    """Small random values, and the waves that the config asks for where the patches are."""
    positions = nn.initializers.normal(0.02)(key, (config.tokens, config.width))
    if not config.position_waves:
        return positions
    return positions.at[config.first_patch :].add(config.position_waves * waves(config.grid, config.width))


def waves(grid: int, width: int) -> Float[Array, "N D"]:
    """Sines and cosines of the row (first half of the width) and column (second half) of each patch, in raster order.

    As the fixed positions of MAE (He et al. 2021), but with wavelengths from 4 patches to 4 sides of a tile, which suit
    the few patches of a small tile. What a width of no whole number of quarters leaves over is 0.
    """
    turns = jnp.pi / 2 * grid ** -jnp.linspace(0.0, 1.0, width // 4)
    angles = jnp.arange(grid)[:, None] * turns
    place = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    both = [
        repeat(place, "row d -> (row column) d", column=grid),
        repeat(place, "column d -> (row column) d", row=grid),
    ]
    return jnp.pad(jnp.concatenate(both, axis=1), ((0, 0), (0, width % 4)))


def init_tower(config: VisionConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh float32 parameters of an encoder alone, as a plain nested dict."""
    patches = jnp.zeros((1, config.patches, config.patch_size**2 * 3), jnp.uint8)
    return VisionTransformer(config, Compute()).init(key, patches)["params"]


def normalise(
    patches: UInt8[Array, "M N PP3"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Float[Array, "M N PP3"]:
    """Bytes to (x / 255 - mean) / std per channel, in float32; channels are the fastest axis of a patch."""
    repeats = patches.shape[-1] // 3
    means, stds = (jnp.tile(jnp.asarray(v, jnp.float32), repeats) for v in (mean, std))
    return (patches.astype(jnp.float32) / 255.0 - means) / stds


def drop_path_factors(key: jax.Array, depth: int, rate: float, rows: int) -> Float[Array, "L 2 rows"]:
    """0 (dropped) or 1 / keep for each layer, branch and row; the rate rises linearly from 0 to `rate` over layers."""
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    return jax.random.bernoulli(key, keep, (depth, 2, rows)) / keep
