"""Decoder families: what their tensors are called and what their configs say.

Keys are those of the decoder's own folder; inside a vision-language model all have the prefix `language_model.`.
Sources: `models/{qwen2,qwen3,llama,mistral,phi,phi3,stablelm,gemma,persimmon}/` of `transformers`, and
`modeling_internlm2.py` of InternLM's releases.
"""

from __future__ import annotations

from vlm_jax.convert.decoder_family import DecoderFamily, family_for, family_named
from vlm_jax.convert.fields import ACTIVATIONS
from vlm_jax.convert.table import Concatenated, Flat, Grouped, Kernel, Rule, Same, linear, norm, rule

__all__ = ["FAMILIES", "IN_TRANSFORMERS", "DecoderFamily", "family_for", "family_named"]

_OURS, _THEIRS = "decoder/layers/{i}", "model.layers.{i}"

_COMMON: list[Rule] = [
    rule("decoder/embedding", "model.embed_tokens.weight", Same()),
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.input_layernorm"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.post_attention_layernorm"),
    *linear("decoder/head", "lm_head"),
]

_QKV: list[Rule] = [
    *linear(f"{_OURS}/attention/query", f"{_THEIRS}.self_attn.q_proj"),
    *linear(f"{_OURS}/attention/key", f"{_THEIRS}.self_attn.k_proj"),
    *linear(f"{_OURS}/attention/value", f"{_THEIRS}.self_attn.v_proj"),
]


def _out_and_norm(out: str, down: str, last: str) -> list[Rule]:
    """What mixes the heads, what leads out of the MLP, and the norm after the last layer, by their names."""
    return [
        *linear(f"{_OURS}/attention/out", f"{_THEIRS}.self_attn.{out}", in_axes=2),
        *linear(f"{_OURS}/mlp/down", f"{_THEIRS}.mlp.{down}"),
        *norm("decoder/norm", f"model.{last}"),
    ]


def _qk_norm(query: str, key: str) -> list[Rule]:
    return [
        *norm(f"{_OURS}/attention/query_norm", f"{_THEIRS}.self_attn.{query}"),
        *norm(f"{_OURS}/attention/key_norm", f"{_THEIRS}.self_attn.{key}"),
    ]


def _fused(part: str, *names: str, leaf: str = "kernel") -> tuple[str, ...]:
    return tuple(f"{_OURS}/{part}/{name}/{leaf}" for name in names)


_LLAMA: list[Rule] = [
    *_COMMON,
    *_QKV,
    *_qk_norm("q_norm", "k_norm"),
    *_out_and_norm("o_proj", "down_proj", "norm"),
    *linear(f"{_OURS}/mlp/gate", f"{_THEIRS}.mlp.gate_proj"),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.up_proj"),
]

_PHI3: list[Rule] = [
    *_COMMON,
    *_out_and_norm("o_proj", "down_proj", "norm"),
    rule(_fused("attention", "query", "key", "value"), f"{_THEIRS}.self_attn.qkv_proj.weight", Concatenated(Kernel())),
    rule(_fused("mlp", "gate", "up"), f"{_THEIRS}.mlp.gate_up_proj.weight", Concatenated(Kernel())),
]

_PHI: list[Rule] = [
    *_COMMON,
    *_QKV,
    *_qk_norm("q_layernorm", "k_layernorm"),
    *_out_and_norm("dense", "fc2", "final_layernorm"),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.fc1"),
]

_PERSIMMON: list[Rule] = [
    *_COMMON,
    *_qk_norm("q_layernorm", "k_layernorm"),
    *_out_and_norm("dense", "dense_4h_to_h", "final_layernorm"),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.dense_h_to_4h"),
    *(
        rule(
            _fused("attention", "query", "key", "value", leaf=ours),
            f"{_THEIRS}.self_attn.query_key_value.{theirs}",
            Grouped(),
        )
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    ),
]

_INTERNLM2: list[Rule] = [
    rule("decoder/embedding", "model.tok_embeddings.weight", Same()),
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.attention_norm"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.ffn_norm"),
    rule(_fused("attention", "query", "key", "value"), f"{_THEIRS}.attention.wqkv.weight", Grouped()),
    rule(f"{_OURS}/attention/out/kernel", f"{_THEIRS}.attention.wo.weight", Kernel(in_axes=2)),
    rule(f"{_OURS}/mlp/gate/kernel", f"{_THEIRS}.feed_forward.w1.weight", Kernel()),
    rule(f"{_OURS}/mlp/up/kernel", f"{_THEIRS}.feed_forward.w3.weight", Kernel()),
    rule(f"{_OURS}/mlp/down/kernel", f"{_THEIRS}.feed_forward.w2.weight", Kernel()),
    rule("decoder/norm/scale", "model.norm.weight", Flat()),
    rule("decoder/head/kernel", "output.weight", Kernel()),
]

_SIZES = {"num_key_value_heads": None, "head_dim": None}
_NO_WINDOW = {"use_sliding_window": False}

QWEN2 = DecoderFamily("qwen2", "Qwen2ForCausalLM", _LLAMA, fixed={"qkv_bias": True}, entries=_SIZES, needed=_NO_WINDOW)
QWEN3 = DecoderFamily(
    "qwen3",
    "Qwen3ForCausalLM",
    _LLAMA,
    fixed={"qk_norm": "head"},
    entries={**_SIZES, "attention_bias": False},
    needed=_NO_WINDOW,
)
PHI3 = DecoderFamily(
    "phi3",
    "Phi3ForCausalLM",
    _PHI3,
    entries={**_SIZES, "sliding_window": None, "partial_rotary_factor": 1.0},
    needed={"attention_bias": False},
    scalings=("none", "longrope"),
)
LLAMA = DecoderFamily(
    "llama", "LlamaForCausalLM", _LLAMA, entries={**_SIZES, "attention_bias": False, "mlp_bias": False}
)
INTERNLM2 = DecoderFamily(
    "internlm2",
    "InternLM2ForCausalLM",
    _INTERNLM2,
    entries=_SIZES,
    needed={"bias": False},
    scalings=("none", "linear", "dynamic"),
)
MISTRAL = DecoderFamily("mistral", "MistralForCausalLM", _LLAMA, entries={**_SIZES, "sliding_window": 4096})
PHI = DecoderFamily(
    "phi",
    "PhiForCausalLM",
    _PHI,
    fixed={
        "norm": "layer_norm",
        "gated": False,
        "parallel": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "head_bias": True,
    },
    entries={"num_key_value_heads": None, "qk_layernorm": False, "partial_rotary_factor": 0.5},
    activations={"gelu_new": "gelu_tanh", **ACTIVATIONS},
)
STABLELM = DecoderFamily(
    "stablelm",
    "StableLmForCausalLM",
    _LLAMA,
    fixed={"norm": "layer_norm"},
    entries={
        "num_key_value_heads": None,
        "use_qkv_bias": False,
        "use_parallel_residual": False,
        "partial_rotary_factor": 0.25,
    },
)
GEMMA = DecoderFamily(
    "gemma",
    "GemmaForCausalLM",
    _LLAMA,
    fixed={"norm": "rms_norm_plus_one", "scale_embeddings": True},
    entries={**_SIZES, "attention_bias": False, "tie_word_embeddings": True},
    needed={"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False},
    # "gelu" in its first releases means the approximation too.
    activations={"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"},
)
PERSIMMON = DecoderFamily(
    "persimmon",
    "PersimmonForCausalLM",
    _PERSIMMON,
    fixed={"norm": "layer_norm", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    # Without a base in the config, `transformers` 4 takes 25000 and `transformers` 5 takes 10000.
    entries={"qk_layernorm": True, "partial_rotary_factor": 0.5, "rope_theta": None},
)

IN_TRANSFORMERS = (QWEN2, QWEN3, LLAMA, MISTRAL, PHI3, PHI, STABLELM, GEMMA, PERSIMMON)
"""Families of `transformers`, in the order in which they are tried when a decoder is written."""

FAMILIES = (*IN_TRANSFORMERS, INTERNLM2)
"""Families that can be read."""
