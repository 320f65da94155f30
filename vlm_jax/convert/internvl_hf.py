"""InternVL as `transformers` has it (`InternVLForConditionalGeneration`): names and config.

The names are those that `save_pretrained` writes, the only ones that load in every `transformers` from 4.52 on. Source:
`models/internvl/{configuration,modeling}_internvl.py` of `transformers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.decoders import LLAMA, PHI3, QWEN2, QWEN3, DecoderFamily, family_for, family_named
from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.images import read_statistics
from vlm_jax.convert.internvit import not_internvit, read_vision, write_images
from vlm_jax.convert.processors import SETTINGS, processor_files, read_layout, read_settings
from vlm_jax.convert.prompts import read_prompt, write_prompt
from vlm_jax.convert.table import Flat, PatchKernel, Rule, Same, as_saved, linear, norm, prefixed, rule
from vlm_jax.convert.vision_family import VisionFamily
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.errors import UserError
from vlm_jax.models.connector import PixelShuffleMLPConfig
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

__all__ = [
    "HOLDS", "MODEL_TYPE", "left_out", "processor_files", "read_beside", "read_config", "rename", "rules",
    "write_config",
]  # fmt: skip

ARCHITECTURE, MODEL_TYPE = "InternVLForConditionalGeneration", "internvl"
HOLDS = (VisionConfig, PixelShuffleMLPConfig, ClosestAspect)
TEMPLATE_OF_RELEASES = "internvl2_5"
"""Prompt format of folders that do not name one: all official HF-native releases are InternVL2.5-MPO or InternVL3."""

FAMILIES = (QWEN2, QWEN3, LLAMA, PHI3)
"""Decoders of this layout, in the order in which they are tried when one is written. InternLM2 is a Llama here, because
`transformers` has no InternLM2."""

_VISION, _THEIR_VISION = "vision/layers/{i}", "vision_tower.encoder.layer.{i}"

VISION: list[Rule] = [
    rule("vision/class_embedding", "vision_tower.embeddings.cls_token", Same(leading=2)),
    rule("vision/position_embedding", "vision_tower.embeddings.position_embeddings", Same(leading=1)),
    rule("vision/patch_embedding/kernel", "vision_tower.embeddings.patch_embeddings.projection.weight", PatchKernel()),
    rule("vision/patch_embedding/bias", "vision_tower.embeddings.patch_embeddings.projection.bias", Flat()),
    *norm(f"{_VISION}/attention_norm", f"{_THEIR_VISION}.layernorm_before"),
    *norm(f"{_VISION}/mlp_norm", f"{_THEIR_VISION}.layernorm_after"),
    *linear(f"{_VISION}/attention/query", f"{_THEIR_VISION}.attention.q_proj"),
    *linear(f"{_VISION}/attention/key", f"{_THEIR_VISION}.attention.k_proj"),
    *linear(f"{_VISION}/attention/value", f"{_THEIR_VISION}.attention.v_proj"),
    *linear(f"{_VISION}/attention/out", f"{_THEIR_VISION}.attention.projection_layer", in_axes=2),
    *norm(f"{_VISION}/attention/query_norm", f"{_THEIR_VISION}.attention.q_norm"),
    *norm(f"{_VISION}/attention/key_norm", f"{_THEIR_VISION}.attention.k_norm"),
    *linear(f"{_VISION}/mlp/up", f"{_THEIR_VISION}.mlp.fc1"),
    *linear(f"{_VISION}/mlp/down", f"{_THEIR_VISION}.mlp.fc2"),
    rule(f"{_VISION}/attention_scale", f"{_THEIR_VISION}.lambda_1", Flat()),
    rule(f"{_VISION}/mlp_scale", f"{_THEIR_VISION}.lambda_2", Flat()),
]

CONNECTOR: list[Rule] = [
    *norm("connector/norm", "multi_modal_projector.layer_norm"),
    *linear("connector/up", "multi_modal_projector.linear_1"),
    *linear("connector/down", "multi_modal_projector.linear_2"),
]


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """The weight table of a folder with this config."""
    return [*VISION, *CONNECTOR, *prefixed("language_model.", family_of(config["text_config"], "text_config").rules)]


def family_of(config: Mapping[str, Any], where: str) -> DecoderFamily:
    """The family of the decoder with this config, by its `model_type` (errors as `family_named`)."""
    return family_named(FAMILIES, "model_type", config.get("model_type"), where)


def left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of names that the model has no use for: none."""
    del config
    return ()


def rename(key: str, config: Mapping[str, Any]) -> str:
    """See `table.as_saved`."""
    del config
    return as_saved(key, "vision_tower", "multi_modal_projector")


def write_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system.

    Besides what `transformers` reads, it holds entries that only we read: `template`, `system_message` and the vision
    encoder's `drop_path_rate` (named as in InternVL's original config), so that a folder says all of its `System`.

    Args:
      system: what to describe.
      image_id: id of `<IMG_CONTEXT>`.
      stop_id: id of the token that ends a turn.
      pad_id: id of the padding token.
      dtype: of the weights, `float32` or `bfloat16`.

    Raises:
      UserError: naming every field that `transformers` has no counterpart for.
    """
    family = _check_expressible(system)
    vision, connector, decoder = system.model.vision, system.model.connector, system.model.decoder
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "image_token_id": image_id,
        "image_seq_length": system.model.tokens_per_tile,
        "downsample_ratio": 1 / connector.factor,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": decoder.tie_embeddings,
        "template": system.template,
        **write_prompt(system),
        "vision_config": _write_encoder(vision),
        "text_config": family.write(decoder, stop_id=stop_id, pad_id=pad_id, dtype=dtype),
    }


def _write_encoder(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "internvl_vision",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "hidden_act": activation_name(vision.activation),
        "attention_bias": vision.qkv_bias,
        "use_qk_norm": vision.qk_norm == "full",
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_eps,
        "image_size": [vision.image_size] * 2,
        "patch_size": [vision.patch_size] * 2,
        "num_channels": 3,
        "layer_scale_init_value": vision.layer_scale,
        "drop_path_rate": vision.drop_path,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        # Makes the norm after the last layer an identity: InternViT has none.
        "use_mean_pooling": True,
        "attention_dropout": 0.0,
        "projection_dropout": 0.0,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }


def _write_alone(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    if wrong := _not_here(vision):
        raise UserError(f"model.vision cannot be stored as an internvl_vision: {'; '.join(wrong)}")
    return {"architectures": ["InternVLVisionModel"], "torch_dtype": dtype, **_write_encoder(vision)}


def _not_here(vision: VisionConfig) -> list[str]:
    """What keeps an encoder from being an `InternVLVisionModel`, one field an item."""
    wrong = not_internvit(vision)
    if vision.qk_norm == "full" and vision.norm_eps != 1e-6:  # fixed in code
        wrong.append(f"norm_eps must be 1e-06, is {vision.norm_eps}")
    return wrong


def _check_expressible(system: System) -> DecoderFamily:
    vision, decoder = system.model.vision, system.model.decoder
    family = family_for(FAMILIES, decoder)
    # What the classes of `transformers` fix in code.
    fixed = {
        "layout.thumbnail": (system.layout.thumbnail, True),
        "model.connector.norm_eps": (system.model.connector.norm_eps, 1e-5),
    }
    wrong = [f"{name} must be {needed!r}, is {value!r}" for name, (value, needed) in fixed.items() if value != needed]
    wrong += [f"model.vision.{problem}" for problem in _not_here(vision)]
    if family is None:
        wrong.append("model.decoder has biases, norms or a rope scaling that none of its decoders has together")
    if wrong:
        raise UserError(f"this system has no counterpart in transformers' InternVL: {'; '.join(wrong)}")
    return family


def read_beside(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What describes the system besides `config.json`: settings of the image processor (errors as `read_settings`)."""
    del config
    return read_settings(folder)


def read_config(config: Mapping[str, Any], images: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` and the image processor's settings describe; sizes come from there alone.

    Args:
      config: contents of `config.json`, in the style of `transformers` 4.52 to 5.x.
      images: settings of the image processor, as `read_beside` finds them.
      where: what to call the file in errors.

    Raises:
      UserError: naming every field with a value that this code does not have, or that is missing.
    """
    fields = Fields(config, where)
    encoder, text = fields.part("vision_config"), fields.part("text_config")
    family = family_of(config["text_config"], f"{where}: text_config")
    fields.need("projector_hidden_act", "gelu", "gelu")
    fields.need("vision_feature_select_strategy", "default", "default")
    stored = _read_encoder(encoder)
    layout = read_layout(images, stored.image_size, f"{where}: {SETTINGS}")
    vision = dataclasses.replace(
        stored,
        feature_layer=fields.layer("vision_feature_layer", -1),
        **read_statistics(images, f"{where}: {SETTINGS}"),
    )
    model = VLMConfig(
        vision=vision,
        connector=PixelShuffleMLPConfig(factor=round(1 / fields.number("downsample_ratio", 0.5))),
        # The whole model's entry decides; where a folder leaves it out, the decoder's own does.
        decoder=family.read(text, tied=config.get("tie_word_embeddings")),
    )
    template = fields.get("template", TEMPLATE_OF_RELEASES)
    prompt = read_prompt(fields, template)
    fields.finish()
    return System(model=model, layout=layout, template=template, system_prompt=prompt)


def _read_encoder(fields: Fields) -> VisionConfig:
    for name, default in (("use_absolute_position_embeddings", True), ("use_mask_token", False)):
        fields.need(name, default, default)
    fields.need("use_mean_pooling", True, True)
    return read_vision(fields, "attention_bias", "use_qk_norm", "layer_scale_init_value")


INTERNVL_VISION = VisionFamily(
    model_types={"internvl_vision": ""},
    rules=[dataclasses.replace(r, key=r.key.removeprefix("vision_tower.")) for r in VISION],
    read=_read_encoder,
    write=_write_alone,
    write_processor=write_images,
    defaults={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 448, "patch_size": 14, "hidden_act": "gelu", "norm_type": "layer_norm", "layer_norm_eps": 1e-6,
        "attention_bias": False, "use_qk_norm": False, "layer_scale_init_value": 0.1,
    },
)  # fmt: skip
"""The encoder saved alone (`InternVLVisionModel.save_pretrained`)."""
