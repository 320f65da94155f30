"""Decoder families: what their tensors are called and what their configs say.

Keys are those of the decoder's own folder; inside a vision-language model all have the prefix `language_model.`.
Sources: `models/{qwen2,qwen3,llama,phi3}/` of `transformers`, and `modeling_internlm2.py` of InternLM's releases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.table import Concatenated, Flat, GroupedKernel, Kernel, Rule, Same, linear, norm, rule
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NoScaling,
    RopeScaling,
)

_OURS, _THEIRS = "decoder/layers/{i}", "model.layers.{i}"

_COMMON: list[Rule] = [
    rule("decoder/embedding", "model.embed_tokens.weight", Same()),
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.input_layernorm"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.post_attention_layernorm"),
    *linear(f"{_OURS}/attention/out", f"{_THEIRS}.self_attn.o_proj", in_axes=2),
    *linear(f"{_OURS}/mlp/down", f"{_THEIRS}.mlp.down_proj"),
    *norm("decoder/norm", "model.norm"),
    *linear("decoder/head", "lm_head"),
]

_LLAMA: list[Rule] = [
    *_COMMON,
    *linear(f"{_OURS}/attention/query", f"{_THEIRS}.self_attn.q_proj"),
    *linear(f"{_OURS}/attention/key", f"{_THEIRS}.self_attn.k_proj"),
    *linear(f"{_OURS}/attention/value", f"{_THEIRS}.self_attn.v_proj"),
    *norm(f"{_OURS}/attention/query_norm", f"{_THEIRS}.self_attn.q_norm"),
    *norm(f"{_OURS}/attention/key_norm", f"{_THEIRS}.self_attn.k_norm"),
    *linear(f"{_OURS}/mlp/gate", f"{_THEIRS}.mlp.gate_proj"),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.up_proj"),
]


def _kernels(part: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{_OURS}/{part}/{name}/kernel" for name in names)


_PHI3: list[Rule] = [
    *_COMMON,
    rule(
        _kernels("attention", "query", "key", "value"),
        f"{_THEIRS}.self_attn.qkv_proj.weight",
        Concatenated(Kernel()),
    ),
    rule(_kernels("mlp", "gate", "up"), f"{_THEIRS}.mlp.gate_up_proj.weight", Concatenated(Kernel())),
]

_INTERNLM2: list[Rule] = [
    rule("decoder/embedding", "model.tok_embeddings.weight", Same()),
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.attention_norm"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.ffn_norm"),
    rule(_kernels("attention", "query", "key", "value"), f"{_THEIRS}.attention.wqkv.weight", GroupedKernel()),
    rule(f"{_OURS}/attention/out/kernel", f"{_THEIRS}.attention.wo.weight", Kernel(in_axes=2)),
    rule(f"{_OURS}/mlp/gate/kernel", f"{_THEIRS}.feed_forward.w1.weight", Kernel()),
    rule(f"{_OURS}/mlp/up/kernel", f"{_THEIRS}.feed_forward.w3.weight", Kernel()),
    rule(f"{_OURS}/mlp/down/kernel", f"{_THEIRS}.feed_forward.w2.weight", Kernel()),
    rule("decoder/norm/scale", "model.norm.weight", Flat()),
    rule("decoder/head/kernel", "output.weight", Kernel()),
]


@dataclasses.dataclass(frozen=True)
class DecoderFamily:
    """One kind of decoder as others store it.

    Attributes:
      model_type, architecture: in its `config.json`.
      rules: the weight table.
      qkv_bias, qk_norm: what its code fixes.
      scalings: rope scalings that its releases have, by our `type`.
    """

    model_type: str
    architecture: str
    rules: list[Rule]
    qkv_bias: bool = False
    qk_norm: str = "none"
    scalings: tuple[str, ...] = ("none", "linear", "dynamic", "llama3")

    def fits(self, config: DecoderConfig) -> bool:
        """Whether this family can hold such a decoder."""
        same = (config.qkv_bias, config.qk_norm) == (self.qkv_bias, self.qk_norm)
        return same and config.rope_scaling.type in self.scalings and _follows_from_context(config)

    def read(self, fields: Fields, tied: bool | None = None) -> DecoderConfig:
        """The decoder that a config describes.

        Args:
          fields: of the decoder's own config; problems are noted there.
          tied: what the whole model's config says of the head, which decides; None if nothing.
        """
        fields.need("attention_bias" if self.model_type != "internlm2" else "bias", False, False)
        for name, value in (("mlp_bias", False), ("use_sliding_window", False), ("partial_rotary_factor", 1.0)):
            fields.need(name, value, value)
        if self.model_type == "phi3" and fields.get("sliding_window", math.inf) < fields.count(
            "max_position_embeddings"
        ):
            fields.wrong("sliding_window", "is shorter than max_position_embeddings; only full attention is there")
        theta, scaling = read_rope(fields)
        if scaling.type not in self.scalings:
            fields.wrong("rope_scaling", f"is '{scaling.type}', which {self.architecture} does not have")
        own = fields.get("tie_word_embeddings", False)
        return DecoderConfig(
            vocab_size=fields.count("vocab_size"),
            width=fields.count("hidden_size"),
            depth=fields.count("num_hidden_layers"),
            heads=fields.count("num_attention_heads"),
            kv_heads=fields.count("num_key_value_heads", fields.count("num_attention_heads")),
            head_dim=fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads")),
            mlp_width=fields.count("intermediate_size"),
            activation=fields.activation("hidden_act"),
            norm_eps=fields.number("rms_norm_eps"),
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=bool(own if tied is None else tied),
            max_tokens=fields.count("max_position_embeddings"),
        )

    def write(self, decoder: DecoderConfig, *, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
        """The config of a decoder that `fits`, as `transformers` 4.52 to 5.x read it."""
        config = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.width,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "intermediate_size": decoder.mlp_width,
            "hidden_act": activation_name(decoder.activation),
            "rms_norm_eps": decoder.norm_eps,
            "rope_theta": decoder.rope_theta,
            "max_position_embeddings": decoder.max_tokens,
            "tie_word_embeddings": decoder.tie_embeddings,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": stop_id,
            "pad_token_id": pad_id,
            **write_rope(decoder.rope_scaling),
        }
        if self.model_type in ("qwen2", "qwen3"):
            config["use_sliding_window"] = False
        if self.model_type == "internlm2":
            config["bias"] = False
        elif self.model_type != "qwen2":
            config["attention_bias"] = False
        if self.model_type == "phi3":
            config |= {"sliding_window": None, "partial_rotary_factor": 1.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return config


QWEN2 = DecoderFamily("qwen2", "Qwen2ForCausalLM", _LLAMA, qkv_bias=True)
QWEN3 = DecoderFamily("qwen3", "Qwen3ForCausalLM", _LLAMA, qk_norm="head")
PHI3 = DecoderFamily("phi3", "Phi3ForCausalLM", _PHI3, scalings=("none", "longrope"))
LLAMA = DecoderFamily("llama", "LlamaForCausalLM", _LLAMA)
INTERNLM2 = DecoderFamily("internlm2", "InternLM2ForCausalLM", _INTERNLM2, scalings=("none", "linear", "dynamic"))


FAMILIES = (QWEN2, QWEN3, PHI3, LLAMA, INTERNLM2)


def family_named(families: Sequence[DecoderFamily], field: str, found: Any, where: str) -> DecoderFamily:
    """The one of `families` whose `field` (`model_type` or `architecture`) is `found`.

    Raises:
      UserError: there is none; `where` begins the message.
    """
    known = {getattr(family, field): family for family in families}
    if found not in known:
        raise UserError(f"{where}: {field} is {found!r}; known: {', '.join(known)}")
    return known[found]


def read_rope(fields: Fields) -> tuple[float, RopeScaling]:
    """Base and scaling of rotary frequencies, from the two flat entries of old or the one dict of transformers 5."""
    # Where both are there, `transformers` 5 takes the old dict, and a flat base where the dict has none.
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        fields.wrong("rope_parameters.partial_rotary_factor", f"must be 1.0, is {rope['partial_rotary_factor']}")
    limit = fields.count("max_position_embeddings")
    before = rope.get("original_max_position_embeddings") or fields.get("original_max_position_embeddings", limit)
    try:
        if kind == "default":
            return theta, NoScaling()
        if kind == "linear":
            return theta, LinearScaling(factor=float(rope["factor"]))
        if kind == "dynamic":
            return theta, DynamicScaling(factor=float(rope["factor"]), trained_tokens=limit)
        if kind == "llama3":
            low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
            return theta, Llama3Scaling(
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
            return theta, scaling
        fields.wrong("rope_scaling", f"must be one of linear, dynamic, longrope, su and llama3, is {kind!r}")
    except KeyError as error:
        fields.wrong(f"rope_scaling.{error.args[0]}", "is missing")
    return theta, NoScaling()


def _follows_from_context(config: DecoderConfig) -> bool:
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
