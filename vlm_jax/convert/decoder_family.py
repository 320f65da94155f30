"""One kind of decoder as others store it: which fields of `DecoderConfig` its code fixes, and which its config says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.convert.fields import ACTIVATIONS, Fields
from vlm_jax.convert.rope import follows_from_context, read_rope, write_rope
from vlm_jax.convert.table import Rule
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig

_PLAIN: Mapping[str, Any] = {
    "norm": "rms_norm",
    "gated": True,
    "parallel": False,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "head_bias": False,
    "qk_norm": "none",
    "sliding_window": None,
    "rotary_fraction": 1.0,
    "scale_embeddings": False,
}
"""What a decoder is where neither its family nor its config says another thing: a Llama."""

_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "attention_bias": {"qkv_bias": True, "out_bias": True},
    "use_qkv_bias": {"qkv_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "qk_layernorm": {"qk_norm": "head_layer_norm"},
    "use_parallel_residual": {"parallel": True},
}
"""Entries of a config that are true or false, and what true makes of a decoder; false leaves it plain."""

_EPS = {"layer_norm": "layer_norm_eps", "rms_norm": "rms_norm_eps", "rms_norm_plus_one": "rms_norm_eps"}


@dataclasses.dataclass(frozen=True)
class DecoderFamily:
    """One kind of decoder as others store it.

    Attributes:
      model_type, architecture: in its `config.json`.
      rules: the weight table.
      fixed: fields of `DecoderConfig` that its code fixes, where it is not like Llama's.
      entries: entries of its config besides those of all, each with what it is where the config lacks it. Of entries
        that others have and this one does not, only the value that means nothing is read.
      needed: entries that must have the one value that our code has; they are written, and may be missing when read.
      activations: what it calls our activations; of two names of one, the first is written.
      scalings: rope scalings that its releases have, by our `type`.
    """

    model_type: str
    architecture: str
    rules: list[Rule]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activations: Mapping[str, str] = dataclasses.field(default_factory=lambda: ACTIVATIONS)
    scalings: tuple[str, ...] = ("none", "linear", "dynamic", "llama3")

    def fits(self, config: DecoderConfig) -> bool:
        """Whether this family can hold such a decoder."""
        described = {**_PLAIN, **self.fixed}
        for entry in self._switched_on(config):
            described |= _SWITCHES[entry]
        free = {"sliding_window": "sliding_window", "partial_rotary_factor": "rotary_fraction"}
        for entry in free.keys() & self.entries.keys():
            del described[free[entry]]
        return (
            all(getattr(config, name) == value for name, value in described.items())
            and ("num_key_value_heads" in self.entries or config.kv_heads == config.heads)
            and ("head_dim" in self.entries or config.head_dim * config.heads == config.width)
            and config.activation in self.activations.values()
            and config.rope_scaling.type in self.scalings
            and follows_from_context(config)
        )

    def read(self, fields: Fields, tied: bool | None = None) -> DecoderConfig:
        """The decoder that a config describes.

        Args:
          fields: of the decoder's own config; problems are noted there.
          tied: what the whole model's config says of the head, which decides; None if nothing.
        """
        foreign = {name: False for name in ("use_sliding_window", *_SWITCHES) if name not in self.entries}
        for name, value in {**foreign, **self.needed}.items():
            fields.need(name, value, value)
        flags = {**_PLAIN, **self.fixed}
        for name, meaning in _SWITCHES.items():
            if name in self.entries and fields.flag(name, self.entries[name]):
                flags |= meaning
        rope = read_rope(
            fields, self.entries.get("rope_theta", 10000.0), self.entries.get("partial_rotary_factor", 1.0)
        )
        if rope.fraction != 1.0 and "partial_rotary_factor" not in self.entries:
            fields.wrong("partial_rotary_factor", f"must be 1.0, is {rope.fraction}")
        if rope.scaling.type not in self.scalings:
            fields.wrong("rope_scaling", f"is '{rope.scaling.type}', which {self.architecture} does not have")
        own = fields.get("tie_word_embeddings", self.entries.get("tie_word_embeddings", False))
        width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        flags |= {"sliding_window": self._window(fields), "rotary_fraction": rope.fraction}
        return DecoderConfig(
            vocab_size=fields.count("vocab_size"),
            width=width,
            depth=fields.count("num_hidden_layers"),
            heads=heads,
            kv_heads=self._size(fields, "num_key_value_heads", heads),
            head_dim=self._size(fields, "head_dim", width // heads),
            mlp_width=fields.count("intermediate_size"),
            activation=fields.choice("hidden_act", self.activations),
            norm_eps=fields.number(_EPS[flags["norm"]]),
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            tie_embeddings=bool(own if tied is None else tied),
            max_tokens=fields.count("max_position_embeddings"),
            **flags,
        )

    def write(self, decoder: DecoderConfig, *, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
        """The config of a decoder that `fits`, as `transformers` 4.52 to 5.x read it."""
        on = self._switched_on(decoder)
        own = {
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "sliding_window": decoder.sliding_window,
            "partial_rotary_factor": decoder.rotary_fraction,
            **{name: name in on for name in _SWITCHES},
        }
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.width,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "intermediate_size": decoder.mlp_width,
            "hidden_act": next(name for name, ours in self.activations.items() if ours == decoder.activation),
            _EPS[decoder.norm]: decoder.norm_eps,
            "rope_theta": decoder.rope_theta,
            "max_position_embeddings": decoder.max_tokens,
            "tie_word_embeddings": decoder.tie_embeddings,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": stop_id,
            "pad_token_id": pad_id,
            **{name: value for name, value in own.items() if name in self.entries},
            **self.needed,
            **write_rope(decoder.rope_scaling),
        }

    def _switched_on(self, config: DecoderConfig) -> list[str]:
        """Which of its entries that are true or false are true of such a decoder."""
        switches = {name: meaning for name, meaning in _SWITCHES.items() if name in self.entries}
        return [
            name
            for name, meaning in switches.items()
            if all(getattr(config, field) == value for field, value in meaning.items())
        ]

    def _size(self, fields: Fields, name: str, usual: int) -> int:
        """A size that not all families can choose."""
        if name in self.entries:
            return fields.count(name, usual)
        fields.need(name, usual, usual)
        return usual

    def _window(self, fields: Fields) -> int | None:
        default = self.entries.get("sliding_window")
        # Null says that there is none, which a missing entry does not say. Code of other families does not read it.
        if "sliding_window" not in self.entries or fields.config.get("sliding_window", default) is None:
            return None
        window = fields.count("sliding_window", default)
        return window if window < fields.count("max_position_embeddings") else None


def family_named(families: Sequence[DecoderFamily], field: str, found: Any, where: str) -> DecoderFamily:
    """The one of `families` whose `field` (`model_type` or `architecture`) is `found`.

    Raises:
      UserError: there is none; `where` begins the message.
    """
    known = {getattr(family, field): family for family in families}
    if found not in known:
        raise UserError(f"{where}: {field} is {found!r}; known: {', '.join(known)}")
    return known[found]


def family_for(families: Sequence[DecoderFamily], config: DecoderConfig) -> DecoderFamily | None:
    """The first of `families` that can hold such a decoder; None where none can."""
    return next((family for family in families if family.fits(config)), None)
