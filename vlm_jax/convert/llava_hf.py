"""LLaVA as `transformers` has it (`LlavaForConditionalGeneration`): names and config of LLaVA-1.5 and its like.

A tower without anything between its patches and the connector, a connector of two linear layers, any decoder. The names
are those that `save_pretrained` of 4.52 to 4.57 writes and all versions from 4.52 on load; those of 5.x, which leave
`vision_model.` out, are read too. What LLaVA-NeXT has besides is in `llava_next_hf`. Source:
`models/llava/{configuration,modeling,processing}_llava.py` of `transformers`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.decoders import IN_TRANSFORMERS, DecoderFamily, family_for, family_named
from vlm_jax.convert.dinov2 import DINOV2
from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.images import read_statistics
from vlm_jax.convert.llava_processors import STRATEGIES, read_single, write_single
from vlm_jax.convert.processors import SETTINGS, read_settings
from vlm_jax.convert.prompts import read_prompt, template_for, write_prompt
from vlm_jax.convert.siglip import SIGLIP
from vlm_jax.convert.table import Rule, as_saved, linear, prefixed
from vlm_jax.convert.vision_family import VisionFamily
from vlm_jax.data.layouts.single import Single
from vlm_jax.errors import UserError
from vlm_jax.models.connector import MLPConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

ARCHITECTURE, MODEL_TYPE = "LlavaForConditionalGeneration", "llava"
HOLDS = (VisionConfig, MLPConfig, Single)

TOWERS: Mapping[str, VisionFamily] = {
    "clip_vision_model": CLIP, "siglip_vision_model": SIGLIP, "dinov2": DINOV2,
}  # fmt: skip
"""By `model_type` of `vision_config`, in the order in which they are tried when one is written."""

DECODERS: tuple[DecoderFamily, ...] = tuple(
    dataclasses.replace(family, fixed={**family.fixed, "head_bias": False}) for family in IN_TRANSFORMERS
)
"""The language models of `transformers` without their heads: LLaVA's classes have one of their own, without a bias."""

_LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
}  # fmt: skip
"""What the config classes of decoders have where a `text_config` is silent, by `model_type`: releases of 2023 and 2024
leave out what is no different from it."""

_CONNECTOR: list[Rule] = [
    *linear("connector/linear_0", "multi_modal_projector.linear_1"),
    *linear("connector/linear_1", "multi_modal_projector.linear_2"),
]


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """The weight table of a folder with this config."""
    tower, decoder = families(config, "config.json")
    prefix = f"vision_tower.{tower.own_prefix}"
    return [*prefixed(prefix, tower.rules), *_CONNECTOR, *prefixed("language_model.", decoder.rules)]


def families(config: Mapping[str, Any], where: str) -> tuple[VisionFamily, DecoderFamily]:
    """The tower's and the decoder's, by their `model_type`.

    Raises:
      UserError: one of them is not known; `where` begins the message.
    """
    kind = config["vision_config"].get("model_type")
    if kind not in TOWERS:
        raise UserError(f"{where}: vision_config: model_type is {kind!r}; known: {', '.join(TOWERS)}")
    kind_of_text = config["text_config"].get("model_type")
    return TOWERS[kind], family_named(DECODERS, "model_type", kind_of_text, f"{where}: text_config")


def rename(key: str, config: Mapping[str, Any]) -> str:
    """The name of the table for a key as any version has it, on the disk or in memory."""
    key = as_saved(key, "vision_tower", "multi_modal_projector", "image_newline")
    prefix = "vision_tower." + families(config, "config.json")[0].own_prefix
    return re.sub(r"^vision_tower\.(vision_model\.)?", prefix, key)


def left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of names that the model has no use for: pooling heads, what follows from the config, a tied head."""
    tower, _ = families(config, "config.json")
    prefix = f"vision_tower.{tower.own_prefix}"
    head = ("language_model.lm_head.weight",) if _tied(config) else ()
    return (*(prefix + pattern for pattern in tower.left_out), "language_model.*.rotary_emb.inv_freq", *head)


def _tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings") or config["text_config"].get("tie_word_embeddings"))


def write_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system.

    Besides what `transformers` reads, it holds entries that only we read: `template`, `system_message`, and the tower's
    `drop_path_rate`.

    Args:
      system: what to describe; its parts are those of `HOLDS`.
      image_id: id of the token that stands for an image.
      stop_id: id of the token that ends a turn.
      pad_id: id of the padding token.
      dtype: of the weights, `float32` or `bfloat16`.

    Raises:
      UserError: naming every field that `transformers` has no counterpart for.
    """
    processor_files(system)  # which refuses some
    return write_llava(system, ARCHITECTURE, MODEL_TYPE, image_id, stop_id, pad_id, dtype)


def write_llava(
    system: System, architecture: str, model_type: str, image_id: int, stop_id: int, pad_id: int, dtype: str
) -> dict[str, Any]:
    """What `config.json` of all kinds of LLaVA says (see `write_config`)."""
    vision, connector, decoder = system.model.vision, system.model.connector, system.model.decoder
    wrong = []
    if connector.depth != 2 or connector.norm:
        wrong.append(
            f"model.connector must be two linear layers without norms, has depth {connector.depth} and norm "
            f"{connector.norm}"
        )
    if vision.normed:
        wrong.append("model.vision.final_norm must be False where feature_layer is the last: it is not applied there")
    family = family_for(DECODERS, decoder)
    if family is None:
        wrong.append(_not_there(decoder))
    tower: dict[str, Any] = {}
    try:
        tower = _write_tower(vision, dtype)
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError(f"this system has no counterpart in transformers' {architecture}: {'; '.join(wrong)}")
    assert family is not None
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": dtype,
        "image_token_index": image_id,
        "image_seq_length": system.model.tokens_per_tile,
        "projector_hidden_act": activation_name(connector.activation),
        "multimodal_projector_bias": connector.bias,
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": STRATEGIES[vision.class_token],
        "tie_word_embeddings": decoder.tie_embeddings,
        "template": system.template,
        **write_prompt(system),
        "vision_config": tower,
        "text_config": family.write(decoder, stop_id=stop_id, pad_id=pad_id, dtype=dtype),
    }


def _not_there(decoder: DecoderConfig) -> str:
    if decoder.head_bias and family_for(IN_TRANSFORMERS, decoder) is not None:
        return "model.decoder.head_bias must be False: the head of its classes has none"
    return "model.decoder has biases, norms or positions that none of its decoders has together"


def _write_tower(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """`vision_config` by the first family that has such a tower.

    Raises:
      UserError: there is none; what is told is of the family that comes nearest.
    """
    told = []
    for family in TOWERS.values():
        try:
            return {**family.write_config(vision, dtype), "drop_path_rate": vision.drop_path}
        except UserError as error:
            told.append(str(error))
    raise UserError(min(told, key=lambda message: message.count(";")))


def read_beside(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What describes the system besides `config.json`: `images`, settings of the image processor, and `template`.

    `config.json` of releases does not name their prompt format (see `prompts.template_for`).

    Raises:
      UserError: as `read_settings`; no known prompt format is that of the folder.
    """
    template = config.get("template")
    if template is None:
        template = template_for(folder, dict(config.get("text_config") or {}).get("model_type"))
    return {"images": read_settings(folder), "template": template}


def read_config(config: Mapping[str, Any], beside: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` and the image processor's settings describe.

    Releases of LLaVA-1.5 for `transformers` say that pictures are cropped (`CLIPImageProcessor`), though the model was
    trained on padded ones; what the folder says is taken.

    Args:
      config: contents of `config.json`, in the style of `transformers` 4.52 to 5.x.
      beside: what `read_beside` found.
      where: what to call the file in errors.

    Raises:
      UserError: naming every field with a value that this code does not have, or that is missing.
    """
    fields = Fields(config, where)
    vision = read_vision(fields, beside["images"])
    layout = read_single(beside["images"], vision, f"{where}: {SETTINGS}")
    return read_llava(fields, vision, layout, beside["template"])


def read_llava(fields: Fields, vision: VisionConfig, layout: Any, template: str) -> System:
    """The system of a `config.json` of any kind of LLaVA, given what sees and how pictures are laid out for it."""
    config, where = fields.config, fields.where
    text = fields.part("text_config")
    _, family = families(config, where)
    text.config = {**_LEFT_OUT.get(family.model_type, {}), **text.config}
    activation = Fields({"projector_hidden_act": "gelu", **config}, where).activation("projector_hidden_act")
    connector = MLPConfig(activation=activation, bias=fields.flag("multimodal_projector_bias", True))
    fields.need("vision_feature_select_strategy", STRATEGIES[vision.class_token], "default")
    decoder = family.read(text, tied=_tied(config))
    prompt = read_prompt(fields, template)
    fields.finish()
    model = VLMConfig(vision=vision, connector=connector, decoder=decoder, vectors=layout.vectors)
    return System(model=model, layout=layout, template=template, system_prompt=prompt)


def read_vision(fields: Fields, images: Mapping[str, Any]) -> VisionConfig:
    """The tower of a `config.json`, with the pixel statistics of the image processor's settings.

    Raises:
      UserError: naming fields that this code does not have.
    """
    described = fields.part("vision_config")
    fields.part("text_config")
    tower, _ = families(fields.config, fields.where)
    vision = tower.read_config(described.config, f"{fields.where}: vision_config")
    vision = dataclasses.replace(
        vision,
        feature_layer=fields.layer("vision_feature_layer", -2),
        drop_path=float(described.get("drop_path_rate", 0.0)),
        **read_statistics(images, f"{fields.where}: {SETTINGS}"),
    )
    if vision.normed:  # hidden states are the layers' outputs, the last one, too
        vision = dataclasses.replace(vision, final_norm=False, pooling_norm=True)
    return vision


def processor_files(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings} of the joint processor and the image processor (see `write_single`)."""
    return write_single(system)
