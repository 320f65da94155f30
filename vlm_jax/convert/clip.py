"""CLIP's vision tower (OpenAI's ViT-L/14 and its like) as `transformers` stores it.

Source: `models/clip/{configuration,modeling}_clip.py` of `transformers`. OpenCLIP's towers (ViT-H/14) are stored so.
All of the tower is kept, `post_layernorm` of the pooled class token with it; text tower and projections are left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlm_jax.convert.fields import Fields
from vlm_jax.convert.table import Flat, PatchKernel, Rule, Same, linear, norm, rule
from vlm_jax.convert.vision_family import VisionFamily, last_norm, read_transformer, write_processor, write_transformer
from vlm_jax.models.vision_transformer import CLIP_MEAN, CLIP_STD, VisionConfig

_OURS, _THEIRS = "vision/layers/{i}", "encoder.layers.{i}"

LAYERS: list[Rule] = [
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.layer_norm1"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.layer_norm2"),
    *linear(f"{_OURS}/attention/query", f"{_THEIRS}.self_attn.q_proj"),
    *linear(f"{_OURS}/attention/key", f"{_THEIRS}.self_attn.k_proj"),
    *linear(f"{_OURS}/attention/value", f"{_THEIRS}.self_attn.v_proj"),
    *linear(f"{_OURS}/attention/out", f"{_THEIRS}.self_attn.out_proj", in_axes=2),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.fc1"),
    *linear(f"{_OURS}/mlp/down", f"{_THEIRS}.mlp.fc2"),
]
"""The layers' names; SigLIP's are the same."""


def _read(fields: Fields) -> VisionConfig:
    return read_transformer(
        fields,
        class_token=True,
        patch_bias=False,
        embedding_norm=True,
        pooling_norm=True,
        layer_scale=None,
        drop_path=0.0,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def _write(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **write_transformer(vision, dtype),
        "intermediate_size": vision.mlp_width,
    }


CLIP = VisionFamily(
    model_types={"clip": "vision_config", "clip_vision_model": ""},
    rules=[
        rule("vision/class_embedding", "embeddings.class_embedding", Flat()),
        rule("vision/position_embedding", "embeddings.position_embedding.weight", Same()),
        rule("vision/patch_embedding/kernel", "embeddings.patch_embedding.weight", PatchKernel()),
        *norm("vision/embedding_norm", "pre_layrnorm"),  # so spelled
        *LAYERS,
        *last_norm("post_layernorm"),
    ],
    read=_read,
    write=_write,
    write_processor=partial(write_processor, "CLIPImageProcessor", crop=True),
    prefix="vision_model.",
    own_prefix="vision_model.",
    left_out=(
        "text_model.*", "text_projection.weight", "visual_projection.weight", "logit_scale", "embeddings.position_ids",
    ),
    defaults={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
)  # fmt: skip
