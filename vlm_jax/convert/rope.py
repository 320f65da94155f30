"""Entries of a `config.json` that say how rotary positions are made: flat ones of old, one dict of today."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from vlm_jax.convert.fields import Fields
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NoScaling,
    RopeScaling,
)


class Rope(NamedTuple):
    """Base of the frequencies, share of a head's channels that are turned, and scaling."""

    theta: float
    fraction: float
    scaling: RopeScaling


def read_rope(fields: Fields, theta: float | None = 10000.0, fraction: float = 1.0) -> Rope:
    """From the flat entries of `transformers` 4 or the one dict of `transformers` 5.

    Args:
      fields: of the decoder's config; problems are noted there.
      theta: where the config says nothing; None where it must.
      fraction: the same for the channels that are turned.
    """
    # Where both are there, `transformers` 5 takes the old dict, and flat entries where the dict has none.
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    found = [
        fields.number(name, default) if rope.get(name) is None else float(rope[name])
        for name, default in (("rope_theta", theta), ("partial_rotary_factor", fraction))
    ]
    return Rope(*found, _read_scaling(fields, rope))


def _read_scaling(fields: Fields, rope: Mapping[str, Any]) -> RopeScaling:
    kind = rope.get("rope_type", rope.get("type", "default"))
    limit = fields.count("max_position_embeddings")
    before = rope.get("original_max_position_embeddings") or fields.get("original_max_position_embeddings", limit)
    try:
        if kind == "default":
            return NoScaling()
        if kind == "linear":
            return LinearScaling(factor=float(rope["factor"]))
        if kind == "dynamic":
            return DynamicScaling(factor=float(rope["factor"]), trained_tokens=limit)
        if kind == "llama3":
            low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
            return Llama3Scaling(
                factor=float(rope["factor"]), low_frequency=low, high_frequency=high, trained_tokens=before
            )
        if kind in ("longrope", "su"):
            scaling = LongRoPEScaling(
                short_factors=tuple(map(float, rope["short_factor"])),
                long_factors=tuple(map(float, rope["long_factor"])),
                trained_tokens=before,
                factor=float(rope.get("factor") or limit / before),
            )
            given = rope.get("attention_factor")
            if given is not None and not math.isclose(given, scaling.amplitude, rel_tol=1e-6):
                fields.wrong("rope_scaling.attention_factor", f"must be {scaling.amplitude}, is {given}")
            return scaling
        fields.wrong("rope_scaling", f"must be one of linear, dynamic, longrope, su and llama3, is {kind!r}")
    except KeyError as error:
        fields.wrong(f"rope_scaling.{error.args[0]}", "is missing")
    return NoScaling()


def follows_from_context(config: DecoderConfig) -> bool:
    """Whether what a folder's config does not say of the scaling is what its readers take from `max_tokens`."""
    scaling = config.rope_scaling
    if isinstance(scaling, DynamicScaling):
        return scaling.trained_tokens == config.max_tokens
    if isinstance(scaling, LongRoPEScaling):
        return math.isclose(scaling.factor, config.max_tokens / scaling.trained_tokens)
    return True


def write_rope(scaling: RopeScaling) -> Mapping[str, Any]:
    """Entries of a config for a scaling; none where there is none."""
    if isinstance(scaling, LinearScaling | DynamicScaling):
        return {"rope_scaling": {"type": scaling.type, "rope_type": scaling.type, "factor": scaling.factor}}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency,
                "high_freq_factor": scaling.high_frequency,
                "original_max_position_embeddings": scaling.trained_tokens,
            }
        }
    if isinstance(scaling, LongRoPEScaling):
        return {
            "original_max_position_embeddings": scaling.trained_tokens,
            "rope_scaling": {
                "type": "longrope",  # and no third name: Phi-3's config in transformers 4 counts the entries
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
            },
        }
    return {}
