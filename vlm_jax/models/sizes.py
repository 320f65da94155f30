"""Sizes of released parts, as fields of their configs: `dict(DECODERS["phi_2"], vocab_size=51297)` in a recipe.

Facts: `config.json` and `preprocessor_config.json` of the releases. Vocabularies are the releases'; a system that adds
tokens says so itself. Which hidden state of a tower is handed on is the system's choice, too:
`dict(TOWERS["clip_l14_336"], feature_layer=-2)` is LLaVA's. What is not said here is the default of the config class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_jax.models.vision_transformer import CLIP_MEAN, CLIP_STD

_CLIP: dict[str, Any] = {
    "norm_eps": 1e-5, "patch_bias": False, "embedding_norm": True, "pooling_norm": True, "layer_scale": None,
    "drop_path": 0.0, "mean": CLIP_MEAN, "std": CLIP_STD,
}  # fmt: skip
_CLIP_L: dict[str, Any] = {
    **_CLIP, "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "activation": "quick_gelu",
}  # fmt: skip

TOWERS: Mapping[str, Mapping[str, Any]] = {
    "clip_l14_224": {**_CLIP_L, "image_size": 224},
    "clip_l14_336": {**_CLIP_L, "image_size": 336},
    # OpenCLIP's, trained on LAION-2B; as many heads as CLIP-L, but a plain GELU.
    "openclip_h14_224": {
        **_CLIP, "image_size": 224, "width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120, "activation": "gelu",
    },
    "siglip_so400m_384": {
        "image_size": 384, "width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "activation": "gelu_tanh",
        "class_token": False, "final_norm": True, "layer_scale": None, "drop_path": 0.0, "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    },
    "dinov2_l14": {
        "image_size": 518, "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "final_norm": True,
        "layer_scale": 1.0, "drop_path": 0.0,
    },
    "internvit_300m_448": {
        "image_size": 448, "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "layer_scale": 1.0,
        "drop_path": 0.1,
    },
    # Of V1-2 and V1-5, which lost the last three of 48 layers.
    "internvit_6b_448": {
        "image_size": 448, "width": 3200, "depth": 45, "heads": 25, "mlp_width": 12800, "norm": "rms_norm",
        "qkv_bias": False, "qk_norm": "full", "layer_scale": 0.1, "drop_path": 0.0,
    },
}  # fmt: skip
"""Fields of `VisionConfig`; patches of 14 pixels, as its default."""

_LLAMA = dict(vocab_size=32000, qkv_bias=False, rope_theta=1e4, max_tokens=2048)
_7B = dict(width=4096, depth=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11008)
_13B = dict(width=5120, depth=40, heads=40, kv_heads=40, head_dim=128, mlp_width=13824)
_LLAMA_2 = dict(_LLAMA, norm_eps=1e-5, max_tokens=4096)
_MISTRAL = dict(_LLAMA, **dict(_7B, kv_heads=8, mlp_width=14336), norm_eps=1e-5) | {"max_tokens": 32768}
_YI = dict(vocab_size=64000, qkv_bias=False, norm_eps=1e-5, rope_theta=5e6, max_tokens=4096)
_LAYER_NORM = dict(norm="layer_norm", norm_eps=1e-5)

DECODERS: Mapping[str, Mapping[str, Any]] = {
    # LLaMA (arXiv:2302.13971, table 2) and Vicuna v1.1 and v1.3, which are tuned from it.
    "llama_7b": dict(_LLAMA, **_7B),
    "llama_13b": dict(_LLAMA, **_13B),
    "vicuna_7b": dict(_LLAMA, **_7B),
    "vicuna_13b": dict(_LLAMA, **_13B),
    # Llama 2 (arXiv:2307.09288), and Vicuna v1.5 from it.
    "llama_2_7b": dict(_LLAMA_2, **_7B),
    "llama_2_13b": dict(_LLAMA_2, **_13B),
    "vicuna_7b_v1_5": dict(_LLAMA_2, **_7B),
    "vicuna_13b_v1_5": dict(_LLAMA_2, **_13B),
    # arXiv:2401.02385
    "tinyllama_1_1b": dict(
        _LLAMA, width=2048, depth=22, heads=32, kv_heads=4, head_dim=64, mlp_width=5632, norm_eps=1e-5
    ),
    # v0.1 (arXiv:2310.06825); its Instruct v0.2 has another base and sees all that is before a token.
    "mistral_7b": dict(_MISTRAL, sliding_window=4096),
    "mistral_7b_v0_2": dict(_MISTRAL, rope_theta=1e6),
    # arXiv:2403.04652, table 1
    "yi_6b": dict(_YI, **dict(_7B, kv_heads=4)),
    "yi_34b": dict(_YI, width=7168, depth=60, heads=56, kv_heads=8, head_dim=128, mlp_width=20480),
    # Qwen2-0.5B-Instruct (arXiv:2407.10671, table 1)
    "qwen2_0_5b": dict(vocab_size=151936, tie_embeddings=True),
    # `config.json` of microsoft/phi-2
    "phi_2": dict(
        _LAYER_NORM,
        vocab_size=51200, width=2560, depth=32, heads=32, kv_heads=32, head_dim=80, mlp_width=10240,
        activation="gelu_tanh", gated=False, parallel=True, out_bias=True, mlp_bias=True, head_bias=True,
        rope_theta=1e4, rotary_fraction=0.4, max_tokens=2048,
    ),
    # arXiv:2402.17834
    "stablelm_2_1_6b": dict(
        _LAYER_NORM,
        vocab_size=100352, width=2048, depth=24, heads=32, kv_heads=32, head_dim=64, mlp_width=5632,
        rope_theta=1e4, rotary_fraction=0.25, max_tokens=4096,
    ),
    # arXiv:2403.08295, table 1
    "gemma_2b": dict(
        vocab_size=256000, width=2048, depth=18, heads=8, kv_heads=1, head_dim=256, mlp_width=16384,
        activation="gelu_tanh", norm="rms_norm_plus_one", qkv_bias=False, rope_theta=1e4, scale_embeddings=True,
        tie_embeddings=True, max_tokens=8192,
    ),
    # `config.json` of adept/persimmon-8b-base; Fuyu-8B has the same decoder.
    "persimmon_8b": dict(
        _LAYER_NORM,
        vocab_size=262144, width=4096, depth=36, heads=64, kv_heads=64, head_dim=64, mlp_width=16384,
        activation="relu2", gated=False, out_bias=True, mlp_bias=True, qk_norm="head_layer_norm",
        rope_theta=25000.0, rotary_fraction=0.5, max_tokens=16384,
    ),
}  # fmt: skip
"""Fields of `DecoderConfig`."""
