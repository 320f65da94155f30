"""Sizes of released parts, as plain fields of their config classes: `VisionConfig(**TOWERS["clip_l14_336"])`.

Facts: `config.json` and `preprocessor_config.json` of the releases. Which hidden state of a tower is handed on is the
system's choice, so that `feature_layer` is not here; the LLaVA family takes `{**TOWERS[name], "feature_layer": -2}`.
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
