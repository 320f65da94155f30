"""InternViT and the connector under the names of InternVL's own code, and what its `vision_config` says.

Sources: `modeling_intern_vit.py`, `configuration_intern_vit.py` and `modeling_internvl_chat.py` of OpenGVLab/InternVL.
"""

from __future__ import annotations

from typing import Any

from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.table import Concatenated, Flat, Kernel, PatchKernel, Rule, Same, linear, norm, rule
from vlm_jax.models.vision_transformer import VisionConfig

_OURS, _THEIRS = "vision/layers/{i}", "encoder.layers.{i}"
_QKV = tuple(f"{_OURS}/attention/{name}" for name in ("query", "key", "value"))

VISION: list[Rule] = [
    rule("vision/class_embedding", "embeddings.class_embedding", Same(leading=2)),
    rule("vision/position_embedding", "embeddings.position_embedding", Same(leading=1)),
    rule("vision/patch_embedding/kernel", "embeddings.patch_embedding.weight", PatchKernel()),
    rule("vision/patch_embedding/bias", "embeddings.patch_embedding.bias", Flat()),
    *norm(f"{_OURS}/attention_norm", f"{_THEIRS}.norm1"),
    *norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.norm2"),
    rule(tuple(f"{path}/kernel" for path in _QKV), f"{_THEIRS}.attn.qkv.weight", Concatenated(Kernel())),
    rule(tuple(f"{path}/bias" for path in _QKV), f"{_THEIRS}.attn.qkv.bias", Concatenated(Flat())),
    *linear(f"{_OURS}/attention/out", f"{_THEIRS}.attn.proj", in_axes=2),
    *norm(f"{_OURS}/attention/query_norm", f"{_THEIRS}.attn.q_norm"),
    *norm(f"{_OURS}/attention/key_norm", f"{_THEIRS}.attn.k_norm"),
    *linear(f"{_OURS}/mlp/up", f"{_THEIRS}.mlp.fc1"),
    *linear(f"{_OURS}/mlp/down", f"{_THEIRS}.mlp.fc2"),
    rule(f"{_OURS}/attention_scale", f"{_THEIRS}.ls1", Flat()),
    rule(f"{_OURS}/mlp_scale", f"{_THEIRS}.ls2", Flat()),
]

CONNECTOR: list[Rule] = [
    *norm("connector/norm", "mlp1.0"),
    *linear("connector/up", "mlp1.1"),
    *linear("connector/down", "mlp1.3"),
]


def read_vision(
    fields: Fields, bias: str = "qkv_bias", qk_norm: str = "qk_normalization", scale: str = "initializer_factor"
) -> VisionConfig:
    """The encoder that a `vision_config` describes.

    Args:
      fields: of that config; problems are noted there.
      bias, qk_norm, scale: the three fields that `transformers` gives other names.
    """
    fields.need("num_channels", 3, 3)
    return VisionConfig(
        image_size=fields.square("image_size"),
        patch_size=fields.square("patch_size"),
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        mlp_width=fields["intermediate_size"],
        norm=fields.choice("norm_type", {"layer_norm": "layer_norm", "rms_norm": "rms_norm"}),
        norm_eps=float(fields["layer_norm_eps"]),
        activation=fields.activation("hidden_act"),
        qkv_bias=fields[bias],
        qk_norm="full" if fields[qk_norm] else "none",
        layer_scale=float(fields[scale]),
        drop_path=float(fields.get("drop_path_rate", 0.0)),
    )


def write_vision(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """The `vision_config` of an encoder."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "torch_dtype": dtype,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "hidden_act": activation_name(vision.activation),
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_eps,
        "qkv_bias": vision.qkv_bias,
        "qk_normalization": vision.qk_norm == "full",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "initializer_factor": vision.layer_scale,
        "initializer_range": 0.02,
        "drop_path_rate": vision.drop_path,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "use_flash_attn": True,
    }
