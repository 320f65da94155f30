"""DINOv2's towers without registers (ViT-S/14 to ViT-L/14) as `transformers` stores them.

Source: `models/dinov2/{configuration,modeling}_dinov2.py` of `transformers`, with the names of the releases, which
`save_pretrained` writes to this day. The token for masked patches is left out: only the pre-training reads it. ViT-g/14
is refused, because its MLPs are gated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlm_jax.convert.fields import Fields
from vlm_jax.convert.table import Flat, PatchKernel, Same, linear, norm, rule
from vlm_jax.convert.vision_family import VisionFamily, last_norm, read_transformer, write_processor, write_transformer
from vlm_jax.models.vision_transformer import VisionConfig

_OURS, _THEIRS = "vision/layers/{i}", "encoder.layer.{i}"


def _read(fields: Fields) -> VisionConfig:
    fields.need("use_swiglu_ffn", False, False)
    return read_transformer(
        fields,
        mlp_width=int(fields.count("hidden_size") * fields.number("mlp_ratio")),
        qkv_bias=fields["qkv_bias"],
        final_norm=True,
        layer_scale=fields.number("layerscale_value"),
        drop_path=0.0,
    )


def _write(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        **write_transformer(vision, dtype),
        "mlp_ratio": vision.mlp_width // vision.width,
        "qkv_bias": vision.qkv_bias,
        "layerscale_value": vision.layer_scale,
        "use_swiglu_ffn": False,
        "use_mask_token": False,  # it is not held
    }


DINOV2 = VisionFamily(
    model_types={"dinov2": ""},
    rules=[
        rule("vision/class_embedding", "embeddings.cls_token", Same(leading=2)),
        rule("vision/position_embedding", "embeddings.position_embeddings", Same(leading=1)),
        rule("vision/patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", PatchKernel()),
        rule("vision/patch_embedding/bias", "embeddings.patch_embeddings.projection.bias", Flat()),
        *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.norm1"),
        *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.norm2"),
        *linear(f"{_OURS}/attention/query", f"{_THEIRS}.attention.attention.query"),
        *linear(f"{_OURS}/attention/key", f"{_THEIRS}.attention.attention.key"),
        *linear(f"{_OURS}/attention/value", f"{_THEIRS}.attention.attention.value"),
        *linear(f"{_OURS}/attention/out", f"{_THEIRS}.attention.output.dense", in_axes=2),
        *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.fc1"),
        *linear(f"{_OURS}/mlp/down", f"{_THEIRS}.mlp.fc2"),
        rule(f"{_OURS}/attention_scale", f"{_THEIRS}.layer_scale1.lambda1", Flat()),
        rule(f"{_OURS}/mlp_scale", f"{_THEIRS}.layer_scale2.lambda1", Flat()),
        *last_norm("layernorm"),
    ],
    read=_read,
    write=_write,
    write_processor=partial(write_processor, "BitImageProcessor", crop=True),
    prefix="dinov2.",
    left_out=("embeddings.mask_token", "classifier.*"),
    sized_by_processor=False,
    defaults={
        "hidden_size": 768, "mlp_ratio": 4, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
        "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "qkv_bias": True,
    },
)  # fmt: skip
