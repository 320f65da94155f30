"""InternViT and the connector under the names of InternVL's own code, what its config says, and a folder of its own.

Sources: `modeling_intern_vit.py`, `configuration_intern_vit.py` and `modeling_internvl_chat.py` of OpenGVLab/InternVL.
"""

from __future__ import annotations

from typing import Any

from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.table import Concatenated, Flat, Kernel, PatchKernel, Rule, Same, linear, norm, rule
from vlm_jax.convert.vision_family import VisionFamily, read_transformer
from vlm_jax.errors import UserError
from vlm_jax.models.vision_transformer import IMAGENET_MEAN, IMAGENET_STD, VisionConfig

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
    return read_transformer(
        fields,
        norm=fields.choice("norm_type", {"layer_norm": "layer_norm", "rms_norm": "rms_norm"}),
        qkv_bias=fields[bias],
        qk_norm="full" if fields[qk_norm] else "none",
        layer_scale=float(fields[scale]),
        drop_path=float(fields.get("drop_path_rate", 0.0)),
    )


def not_internvit(vision: VisionConfig) -> list[str]:
    """What keeps an encoder from being an InternViT, one field an item."""
    fixed = {"class_token": True, "patch_bias": True}
    fixed |= dict.fromkeys(("embedding_norm", "final_norm", "pooling_norm"), False)
    found = {name: getattr(vision, name) for name in fixed}
    wrong = [f"{name} must be {fixed[name]}, is {value}" for name, value in found.items() if value != fixed[name]]
    if vision.layer_scale is None:
        wrong.append("layer_scale must be a number, is None")
    return wrong


def check_imagenet(vision: VisionConfig) -> None:
    """Refuses pixel statistics other than ImageNet's, which InternVL's own code has as constants.

    Raises:
      UserError: they are others.
    """
    if (vision.mean, vision.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(
            f"model.vision: InternVL's own code normalises pixels with ImageNet's mean and std, not with {vision.mean} "
            f"and {vision.std}; `renormalise` of vlm_jax.convert.clip_to_internvit makes the weights fit them"
        )


def write_vision(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """The `vision_config` of an encoder.

    Raises:
      UserError: it is no InternViT, naming every field that differs from what all of them have.
    """
    if wrong := not_internvit(vision):
        raise UserError(f"model.vision cannot be stored as an InternViT: {'; '.join(wrong)}")
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


def write_tower_config(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of a folder that holds an InternViT alone (errors as `write_vision`)."""
    code = {
        "AutoConfig": "configuration_intern_vit.InternVisionConfig",
        "AutoModel": "modeling_intern_vit.InternVisionModel",
    }
    return {"auto_map": code, **write_vision(vision, dtype)}


def write_images(vision: VisionConfig) -> dict[str, Any]:
    """`preprocessor_config.json` in the form of InternViT's and InternVL's own folders."""
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": vision.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "resample": 3,  # bicubic
        "size": vision.image_size,
    }


INTERNVIT = VisionFamily(
    model_types={"intern_vit_6b": ""},  # the small one's too
    rules=VISION,
    read=read_vision,
    write=write_tower_config,
    write_processor=write_images,
    defaults={
        "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48, "num_attention_heads": 25,
        "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "norm_type": "rms_norm", "layer_norm_eps": 1e-6,
        "qkv_bias": False, "qk_normalization": True, "initializer_factor": 0.1, "drop_path_rate": 0.0,
    },
)  # fmt: skip
