"""Rotary position embeddings and the ways in which released decoders stretch them over longer sequences."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float, Int

from vlm_jax.config import config_class

RotaryTable = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]
"""Cosines and sines, float32."""


@config_class
class NoScaling:
    """Frequencies as they are."""

    type: Literal["none"] = "none"

    def __call__(self, frequencies: jax.Array, lengths: jax.Array) -> tuple[jax.Array, float]:
        """What becomes of the frequencies theta^(-2i/channels), and a factor of cosine and sine.

        Args:
          frequencies: float32 [half].
          lengths: int32 [B, T], tokens of the whole sequence that a token belongs to.

        Returns:
          float32, [half] or [B, T, half]; and the factor.
        """
        return frequencies, 1.0


@config_class
class LinearScaling:
    """Positions divided by `factor` (position interpolation, Chen et al. 2023)."""

    type: Literal["linear"] = "linear"
    factor: float

    def __call__(self, frequencies: jax.Array, lengths: jax.Array) -> tuple[jax.Array, float]:
        """As `NoScaling`."""
        return frequencies / self.factor, 1.0


@config_class
class DynamicScaling:
    """A base that grows with the sequence once it is longer than trained (dynamic NTK; InternLM2).

    Rule: `_compute_dynamic_ntk_parameters` in `modeling_rope_utils.py` of `transformers`, which takes the longest
    sequence of a batch for all; here every sequence has its own length, as if it were alone. A key that is cached keeps
    the frequencies of the length at its time, there as here.

    Attributes:
      factor: alpha.
      trained_tokens: the length beyond which the base grows.
    """

    type: Literal["dynamic"] = "dynamic"
    factor: float
    trained_tokens: int

    def __call__(self, frequencies: jax.Array, lengths: jax.Array) -> tuple[jax.Array, float]:
        """As `NoScaling`."""
        half = frequencies.shape[0]
        length = jnp.maximum(lengths, self.trained_tokens).astype(jnp.float32)
        growth = (self.factor * length / self.trained_tokens) - (self.factor - 1)
        # The base is raised to -i/half: its growth to d/(d-2) multiplies the frequencies.
        exponents = jnp.arange(half, dtype=jnp.float32) / half * (half / (half - 1))
        return frequencies * growth[..., None] ** -exponents, 1.0


@config_class
class LongRoPEScaling:
    """Frequencies divided one by one, by other numbers in long sequences than in short ones (Phi-3; Ding et al. 2024).

    Rule: `_compute_longrope_parameters` in `modeling_rope_utils.py` of `transformers`; `su` in Phi-3's own first code.

    Attributes:
      short_factors, long_factors: a divisor for every pair of channels that is turned.
      trained_tokens: the longest "short" sequence (`original_max_position_embeddings`).
      factor: how many times longer sequences became; cosine and sine are multiplied by
        `amplitude`, sqrt(1 + ln(factor) / ln(trained_tokens)).
    """

    type: Literal["longrope"] = "longrope"
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    trained_tokens: int
    factor: float

    def __call__(self, frequencies: jax.Array, lengths: jax.Array) -> tuple[jax.Array, float]:
        """As `NoScaling`."""
        short, long = (jnp.asarray(x, jnp.float32) for x in (self.short_factors, self.long_factors))
        divisors = jnp.where((lengths > self.trained_tokens)[..., None], long, short)
        return frequencies / divisors, self.amplitude

    @property
    def amplitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return math.sqrt(1 + math.log(self.factor) / math.log(self.trained_tokens)) if self.factor > 1 else 1.0


@config_class
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).

    Rule: `_compute_llama3_parameters` in `modeling_rope_utils.py` of `transformers`.

    Attributes:
      factor: divisor of the low frequencies.
      low_frequency, high_frequency: how many times a wave fits into `trained_tokens` at the two borders.
      trained_tokens: length before the scaling (`original_max_position_embeddings`).
    """

    type: Literal["llama3"] = "llama3"
    factor: float
    low_frequency: float
    high_frequency: float
    trained_tokens: int

    def __call__(self, frequencies: jax.Array, lengths: jax.Array) -> tuple[jax.Array, float]:
        """As `NoScaling`."""
        waves = self.trained_tokens * frequencies / (2 * math.pi)
        kept = jnp.clip((waves - self.low_frequency) / (self.high_frequency - self.low_frequency), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor), 1.0


RopeScaling = Annotated[
    NoScaling | LinearScaling | DynamicScaling | LongRoPEScaling | Llama3Scaling, pydantic.Field(discriminator="type")
]


def rotary_table(
    positions: Int[Array, "B T"],
    lengths: Int[Array, "B T"],
    channels: int,
    theta: float,
    scaling: RopeScaling,
) -> RotaryTable:
    """Cosines and sines of position times frequency theta^(-2i/channels), as `scaling` changes it.

    `channels`, those of a head that are turned, are even in number.
    """
    frequencies = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    frequencies, larger = scaling(frequencies, lengths)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return larger * jnp.cos(angles), larger * jnp.sin(angles)


def rotate(x: Float[Array, "B T H Dh"], table: RotaryTable) -> Float[Array, "B T H Dh"]:
    """Rotary embedding in the half-split convention of Llama: pairs are (i, i + half).

    Channels from 2 * half on are left as they are (partial rotary embeddings of GPT-NeoX, Phi, StableLM, Persimmon).
    """
    cos, sin = (t[:, :, None, :] for t in table)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return turned.astype(x.dtype)


def packed_lengths(positions: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Length of the conversation that each token of a packed row is in: its last position and one.

    Branches of a conversation count as long as its longest one.
    """
    slots = segments.shape[1] + 1

    def of_row(position: jax.Array, segment: jax.Array) -> jax.Array:
        return jax.ops.segment_max(position, segment, slots)[segment] + 1

    return jax.vmap(of_row)(positions, segments)
