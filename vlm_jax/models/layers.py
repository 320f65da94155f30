"""The smallest parts: linear maps, norms and MLPs, with parameters as plain arrays under public names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.config import config_class
from vlm_jax.sharding import constrain

NormKind = Literal["layer_norm", "rms_norm", "rms_norm_plus_one"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu2", "silu"]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), OpenAI CLIP's stand-in for GELU (at most 0.021 away from it)."""
    return x * jax.nn.sigmoid(1.702 * x)


def relu2(x: jax.Array) -> jax.Array:
    """max(x, 0) squared (Primer, So et al. 2021; Persimmon)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu2": relu2,
    "silu": jax.nn.silu,
}


@config_class
class Compute:
    """How the arithmetic is done: none of it changes what the model is.

    Attributes:
      dtype: of activations and matrix products; parameters, norms, softmax and loss stay float32.
      scan_layers: compile one layer and loop over it. Compiles in constant time (large models); unrolled runs faster
        on a CPU.
      remat: what the backward pass computes again: nothing, all but matrix products without batch dimensions, or
        everything inside a layer.
      attention: "xla" is our own (scores, softmax, sum), "cudnn" that of `jax.nn.dot_product_attention` on NVIDIA GPUs.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["xla", "cudnn"] = "xla"


class Linear(nn.Module):
    """A linear map over the last `in_axes` dimensions to `features`, e.g. width to (heads, head_dim) and back."""

    features: tuple[int, ...]
    in_axes: int = 1
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-self.in_axes :] + self.features
        kernel = self.param("kernel", partial(_fan_in_normal, in_axes=self.in_axes), shape)
        contract = (tuple(range(x.ndim - self.in_axes, x.ndim)), tuple(range(self.in_axes)))
        y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (contract, ((), ())))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, self.features).astype(self.dtype)
        return y


def _fan_in_normal(key: jax.Array, shape: tuple[int, ...], in_axes: int) -> jax.Array:
    """Normal with variance 1 / fan-in, truncated at two standard deviations (as `lecun_normal`, for any rank)."""
    fan_in = math.prod(shape[:in_axes])
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (fan_in**-0.5 / 0.8796)


class Norm(nn.Module):
    """LayerNorm (scale and bias) or RMSNorm (scale) over the last dimension, computed in float32.

    "rms_norm_plus_one" multiplies by 1 + scale, as Gemma stores it.
    """

    kind: NormKind
    eps: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x = x.astype(jnp.float32)
        plus_one = self.kind == "rms_norm_plus_one"
        scale = self.param("scale", nn.initializers.zeros if plus_one else nn.initializers.ones, (x.shape[-1],))
        if self.kind == "layer_norm":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        x = x * (1.0 + scale if plus_one else scale)
        if self.kind == "layer_norm":
            x = x + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x.astype(self.dtype)


class MLP(nn.Module):
    """up, activation, down; gated: activation(gate) * up, down (SwiGLU with silu)."""

    hidden: int
    activation: Activation
    gated: bool
    use_bias: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        linear = partial(Linear, use_bias=self.use_bias, dtype=self.dtype)
        hidden = linear((self.hidden,), name="up")(x)
        activate = ACTIVATIONS[self.activation]
        hidden = activate(linear((self.hidden,), name="gate")(x)) * hidden if self.gated else activate(hidden)
        hidden = constrain(hidden, "batch", None, "mlp")
        return linear((x.shape[-1],), name="down")(hidden)
