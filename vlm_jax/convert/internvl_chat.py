"""InternVL as its own code stores it (`InternVLChatModel`, the "original" layout): tensor names and config.

Sources: `configuration_internvl_chat.py` and `modeling_internvl_chat.py` of OpenGVLab/InternVL. That code is neither
run nor written: a folder in this layout is for those who have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.decoders import INTERNLM2, LLAMA, PHI3, QWEN2, QWEN3, DecoderFamily, family_for, family_named
from vlm_jax.convert.fields import IMAGES, Fields
from vlm_jax.convert.internvit import CONNECTOR, VISION, check_imagenet, read_vision, write_images, write_vision
from vlm_jax.convert.prompts import read_prompt, read_release, write_prompt
from vlm_jax.convert.table import Rule, prefixed
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.errors import UserError
from vlm_jax.models.connector import PixelShuffleMLPConfig
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

MODEL_TYPE = "internvl_chat"
HOLDS = (VisionConfig, PixelShuffleMLPConfig, ClosestAspect)

_PHI3 = dataclasses.replace(PHI3, entries={k: v for k, v in PHI3.entries.items() if k != "partial_rotary_factor"})
"""Phi-3 as InternVL's code has it, which turns all channels of a head."""

FAMILIES = (QWEN2, QWEN3, INTERNLM2, LLAMA, _PHI3)
"""Decoders of this layout, in the order in which they are tried when one is written: a plain one without biases becomes
InternLM2, as all released ones are."""

_TEMPLATES = {
    "Hermes-2": "internvl2",
    "internlm2-chat": "internlm2-chat",
    "phi3-chat": "phi3",
    "internvl2_5": "internvl2_5",
}
"""InternVL's name of a prompt format (`conversation.py`) -> ours."""


def left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of names that the model has no use for: none."""
    del config
    return ()


def rename(key: str, config: Mapping[str, Any]) -> str:
    """Stored names are already those of the table."""
    del config
    return key


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """The weight table of a folder with this config."""
    family = family_of(config["llm_config"], "llm_config")
    return [*prefixed("vision_model.", VISION), *CONNECTOR, *prefixed("language_model.", family.rules)]


def family_of(config: Mapping[str, Any], where: str) -> DecoderFamily:
    """The family of the decoder with this config, by its `architectures` (errors as `family_named`)."""
    return family_named(FAMILIES, "architecture", (config.get("architectures") or [None])[0], where)


def read_beside(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What describes the system besides `config.json`: the prompt format's text as of this release.

    InternVL's code prepares images as `config.json` says; it does not read its folders' `preprocessor_config.json`.

    Raises:
      UserError: `conversation.py` has another prompt format, or none, of the name that the config gives.
    """
    name = config.get("template")
    if name not in _TEMPLATES:
        return {}  # `read_config` says so
    return {"system_message": read_release(folder, name, TEMPLATES[_TEMPLATES[name]])}


def read_config(config: Mapping[str, Any], beside: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` describes.

    Args:
      config: contents of `config.json`. Its `system_message`, where there is one, comes before that of the release.
      beside: what `read_beside` found.
      where: what to call the file in errors.

    Raises:
      UserError: naming every field with a value that this code does not have, or that is missing.
    """
    fields = Fields(config, where)
    vision_fields, text_fields = fields.part("vision_config"), fields.part("llm_config")
    family = family_of(config["llm_config"], f"{where}: llm_config")
    for name, value, default in (("ps_version", "v2", "v1"), ("pad2square", False, False)):
        fields.need(name, value, default)
    for name in ("use_backbone_lora", "use_llm_lora"):
        fields.need(name, 0, 0)
    vision = dataclasses.replace(read_vision(vision_fields), feature_layer=fields.layer("select_layer", -1))
    size = fields.get("force_image_size", vision.image_size)
    if size != vision.image_size:
        fields.wrong("force_image_size", f"is {size}, but vision_config.image_size is {vision.image_size}")
    template = fields.choice("template", _TEMPLATES)
    tiled = fields.get("dynamic_image_size", False)
    model = VLMConfig(
        vision=vision,
        connector=PixelShuffleMLPConfig(factor=round(1 / fields.number("downsample_ratio", 0.5))),
        # The whole model's entry decides, and InternVL's config class makes it False.
        decoder=family.read(text_fields, tied=fields.get("tie_word_embeddings", False)),
    )
    layout = ClosestAspect(
        tile_size=size,
        min_tiles=fields.get("min_dynamic_patch", 1) if tiled else 1,
        max_tiles=fields.get("max_dynamic_patch", 6) if tiled else 1,
        thumbnail=fields.get("use_thumbnail", False),
    )
    prompt = read_prompt(fields, template, beside.get("system_message"))
    fields.finish()
    return System(model=model, layout=layout, template=template, system_prompt=prompt)


def write_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system.

    Args:
      system: what to describe.
      image_id: not in this config; InternVL looks the token up.
      stop_id: id of the token that ends a turn.
      pad_id: id of the padding token.
      dtype: of the weights.

    Raises:
      UserError: no decoder family can hold the decoder, the connector's norm is another, the encoder is no InternViT,
        or its pixel statistics are not ImageNet's.
    """
    del image_id
    check_imagenet(system.model.vision)
    decoder, layout = system.model.decoder, system.layout
    family = family_for(FAMILIES, decoder)
    if system.model.connector.norm_eps != 1e-5:
        raise UserError(
            f"model.connector.norm_eps must be 1e-5 in InternVL's code, is {system.model.connector.norm_eps}"
        )
    if family is None:
        raise UserError("model.decoder: InternVL's own layout has no decoder with these biases, norms and rope scaling")
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "downsample_ratio": 1 / system.model.connector.factor,
        "dynamic_image_size": layout.max_tiles > 1,
        "force_image_size": layout.tile_size,
        "min_dynamic_patch": layout.min_tiles,
        "max_dynamic_patch": layout.max_tiles,
        "use_thumbnail": layout.thumbnail,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": system.model.vision.feature_layer,
        **write_prompt(system),
        "template": {ours: theirs for theirs, ours in _TEMPLATES.items()}[system.template],
        "tie_word_embeddings": decoder.tie_embeddings,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "llm_config": family.write(decoder, stop_id=stop_id, pad_id=pad_id, dtype=dtype),
        "vision_config": write_vision(system.model.vision, dtype),
    }


def processor_files(system: System) -> dict[str, dict[str, Any]]:
    """What InternVL's own folders say of images; its code does not read it."""
    return {IMAGES: write_images(system.model.vision)}
