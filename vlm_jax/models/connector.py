"""Connectors: from a tile's patch features to visual tokens of the decoder's width."""

from __future__ import annotations

from typing import Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vlm_jax.config import config_class, one_of
from vlm_jax.errors import UserError
from vlm_jax.models.layers import ACTIVATIONS, Activation, Compute, Linear, Norm


class Features(Protocol):
    """What a connector asks of a vision config: patches of a tile, and the width of their features."""

    @property
    def patches(self) -> int: ...

    @property
    def width(self) -> int: ...


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

    def tokens_per_tile(self, vision: Features) -> int:
        """How many visual tokens one tile becomes (n)."""
        return vision.patches // self.factor**2

    def check(self, vision: Features, width: int) -> None:
        """Refuses tiles that the factor does not divide."""
        del width
        side = round(vision.patches**0.5)
        if side**2 != vision.patches or side % self.factor:
            raise UserError(f"connector.factor: {self.factor} does not divide the {side} patches along a tile")

    def module(self, width: int, compute: Compute) -> PixelShuffleMLP:
        """The network, to a decoder of this width."""
        return PixelShuffleMLP(self, width, compute)


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


@config_class
class MLPConfig:
    """A connector of linear layers with an activation between them; every patch becomes a visual token.

    Depth 1 is LLaVA's projection, depth 2 LLaVA-1.5's (`mlp2x_gelu`), TinyLLaVA has any; with norms it is Yi-VL's
    (`llava/model/multimodal_projector/builder.py` of LLaVA and of Yi).

    Attributes:
      depth: linear layers.
      activation: between them.
      norm: a LayerNorm behind each of them.
      norm_eps: of the LayerNorms.
      bias: of the linear layers.
    """

    type: Literal["mlp"] = "mlp"
    depth: int = 2
    activation: Activation = "gelu"
    norm: bool = False
    norm_eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"connector.depth: must be at least 1, got {self.depth}")

    def tokens_per_tile(self, vision: Features) -> int:
        """As many as patches."""
        return vision.patches

    def check(self, vision: Features, width: int) -> None:
        """Fits between any two."""
        del vision, width

    def module(self, width: int, compute: Compute) -> MLPConnector:
        """The network, to a decoder of this width."""
        return MLPConnector(self, width, compute)


class MLPConnector(nn.Module):
    """[M, N, C] patch features to [M, N, D] visual tokens; parameters `linear_0`, `norm_0`, `linear_1`, ..."""

    config: MLPConfig
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "M N C"]) -> Float[Array, "M N D"]:
        c, dtype = self.config, self.compute.dtype
        for number in range(c.depth):
            if number:
                x = ACTIVATIONS[c.activation](x)
            x = Linear((self.width,), use_bias=c.bias, dtype=dtype, name=f"linear_{number}")(x)
            if c.norm:
                x = Norm("layer_norm", c.norm_eps, dtype, name=f"norm_{number}")(x)
        return x


@config_class
class IdentityConfig:
    """No connector: the features are of the decoder's width already (Fuyu)."""

    type: Literal["identity"] = "identity"

    def tokens_per_tile(self, vision: Features) -> int:
        """As many as patches."""
        return vision.patches

    def check(self, vision: Features, width: int) -> None:
        """Refuses features of another width."""
        if vision.width != width:
            raise UserError(
                f"connector.type: identity needs vision.width ({vision.width}) to be decoder.width ({width})"
            )

    def module(self, width: int, compute: Compute) -> Identity:
        """The network, which has no parameters."""
        del width, compute
        return Identity()


class Identity(nn.Module):
    """Features as they are."""

    def __call__(self, features: Float[Array, "M N D"]) -> Float[Array, "M N D"]:
        return features


ConnectorConfig = one_of(PixelShuffleMLPConfig, MLPConfig, IdentityConfig)


class Connector(nn.Module):
    """A connector of any kind, and the learned vectors that stand between visual tokens: all under `connector/`.

    Attributes:
      config: of the connector.
      vectors: names of the vectors, each a parameter of the decoder's width (LLaVA-NeXT's `image_newline`).
      width: of the decoder.
      compute: how it calculates.
    """

    config: ConnectorConfig
    vectors: tuple[str, ...]
    width: int
    compute: Compute

    def setup(self) -> None:
        self.project = self.config.module(self.width, self.compute)
        nn.share_scope(self, self.project)
        initial = nn.initializers.normal(self.width**-0.5)
        self.learned_vectors = [self.param(name, initial, (self.width,)) for name in self.vectors]

    def __call__(self, features: Float[Array, "M N C"]) -> Float[Array, "M n D"]:
        return self.project(features)

    def learned(self) -> Float[Array, "L D"]:
        """The learned vectors, in the order of `vectors`."""
        rows = [vector.astype(self.compute.dtype) for vector in self.learned_vectors]
        return jnp.stack(rows) if rows else jnp.zeros((0, self.width), self.compute.dtype)


def pixel_shuffle(features: Float[Array, "M N C"], factor: int) -> Float[Array, "M n C2"]:
    """Space to depth in the order of InternVL's `ps_version` v2: the offset inside a cell is the slow channel axis."""
    side = round(features.shape[1] ** 0.5)
    return rearrange(
        features, "m (h a w b) c -> m (h w) (a b c)", h=side // factor, a=factor, w=side // factor, b=factor
    )


def init_connector(
    config: ConnectorConfig, vectors: tuple[str, ...], vision: Features, width: int, key: jax.Array
) -> dict:
    """Fresh float32 parameters of a connector alone, without its prefix."""

    def run(connector: Connector, features: jax.Array) -> None:
        connector(features)
        connector.learned()

    connector = Connector(config, vectors, width, Compute())
    return nn.init(run, connector)(key, jnp.zeros((1, vision.patches, vision.width))).get("params", {})
