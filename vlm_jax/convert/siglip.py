"""SigLIP's vision tower (so400m/14 and its like, SigLIP 2 at a fixed size too) as `transformers` stores it.

Source: `models/siglip/{configuration,modeling}_siglip.py` of `transformers`. Kept is what leads to the last hidden
states, of which `post_layernorm` is the last step; the attention pooling behind it is left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlm_jax.convert.clip import LAYERS
from vlm_jax.convert.fields import Fields
from vlm_jax.convert.table import Flat, PatchKernel, Same, rule
from vlm_jax.convert.vision_family import VisionFamily, last_norm, read_transformer, write_processor, write_transformer
from vlm_jax.models.vision_transformer import VisionConfig


def _read(fields: Fields) -> VisionConfig:
    return read_transformer(
        fields,
        class_token=False,
        final_norm=True,
        layer_scale=None,
        drop_path=0.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _write(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        **write_transformer(vision, dtype),
        "intermediate_size": vision.mlp_width,
        "vision_use_head": False,  # the pooling is not held
    }


SIGLIP = VisionFamily(
    model_types={"siglip": "vision_config", "siglip_vision_model": ""},
    rules=[
        rule("vision/position_embedding", "embeddings.position_embedding.weight", Same()),
        rule("vision/patch_embedding/kernel", "embeddings.patch_embedding.weight", PatchKernel()),
        rule("vision/patch_embedding/bias", "embeddings.patch_embedding.bias", Flat()),
        *LAYERS,
        *last_norm("post_layernorm"),
    ],
    read=_read,
    write=_write,
    write_processor=partial(write_processor, "SiglipImageProcessor", crop=False),
    prefix="vision_model.",
    own_prefix="vision_model.",
    left_out=("text_model.*", "logit_scale", "logit_bias", "head.*", "embeddings.position_ids"),
    defaults={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
)  # fmt: skip
