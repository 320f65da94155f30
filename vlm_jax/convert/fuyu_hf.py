"""Fuyu as `transformers` has it (`FuyuForCausalLM`): names and config.

The names are those that `save_pretrained` writes, the only ones that load in every `transformers` from 4.52 on. Fuyu's
own release says its decoder in flat entries of `config.json`, later versions in `text_config`; both are written,
because 4.52 looks at both. Source: `models/fuyu/{configuration,modeling,image_processing,processing}_fuyu.py` of
`transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.decoders import PERSIMMON
from vlm_jax.convert.fields import IMAGES, Fields
from vlm_jax.convert.images import read_statistics
from vlm_jax.convert.processors import PROCESSOR, SETTINGS, read_settings
from vlm_jax.convert.prompts import read_prompt, write_prompt
from vlm_jax.convert.table import Rule, as_saved, linear, prefixed
from vlm_jax.data.layouts.native import NativeRaster
from vlm_jax.errors import UserError
from vlm_jax.models.connector import IdentityConfig
from vlm_jax.models.patch_projection import PatchProjectionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

__all__ = [
    "HOLDS",
    "MODEL_TYPE",
    "left_out",
    "processor_files",
    "read_beside",
    "read_config",
    "rename",
    "rules",
    "write_config",
]

ARCHITECTURE, MODEL_TYPE = "FuyuForCausalLM", "fuyu"
HOLDS = (PatchProjectionConfig, IdentityConfig, NativeRaster)
TEMPLATE = "fuyu"
"""Prompt format of folders that do not name one."""

_DECODER = {
    "model_type": "persimmon", "vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384,
    "num_hidden_layers": 36, "num_attention_heads": 64, "hidden_act": "relu2", "max_position_embeddings": 16384,
    "layer_norm_eps": 1e-5, "rope_theta": 25000.0,
}  # fmt: skip
"""Fuyu-8B's, which `transformers` 4 leaves out of what it writes where they are the same."""

_BILINEAR = 2
_PROCESSOR = {"size": {"height": 1080, "width": 1920}, "patch_size": {"height": 30, "width": 30}}
"""Fuyu-8B's again."""

RULES: list[Rule] = [
    *linear("vision/patch_embedding", "vision_embed_tokens"),
    *prefixed("language_model.", PERSIMMON.rules),
]


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """The weight table; the same for every config."""
    del config
    return RULES


def left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of names that the model has no use for: none."""
    del config
    return ()


def rename(key: str, config: Mapping[str, Any]) -> str:
    """See `table.as_saved`."""
    del config
    return as_saved(key, "vision_embed_tokens")


def write_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system.

    Besides what `transformers` reads, it holds entries that only we read: `template`, `patches_per_slot`, `resolution`
    and `resolutions` (`slot`, `side` and `sides` of the layout).

    Args:
      system: what to describe.
      image_id: id of the placeholder.
      stop_id: id of the token that ends an answer.
      pad_id: id of the padding token.
      dtype: of the weights, `float32` or `bfloat16`.

    Raises:
      UserError: naming every field that `transformers` has no counterpart for.
    """
    _check_expressible(system)
    decoder, layout = system.model.decoder, system.layout
    text = PERSIMMON.write(decoder, stop_id=stop_id, pad_id=pad_id, dtype=dtype)
    return {
        **text,
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "image_token_id": image_id,
        "patch_size": system.model.vision.patch_size,
        "num_channels": 3,
        "template": system.template,
        "patches_per_slot": layout.slot,
        "resolution": layout.side,
        "resolutions": list(layout.sides),
        **write_prompt(system),
        "text_config": text,
    }


def _check_expressible(system: System) -> None:
    model, layout = system.model, system.layout
    wrong = []
    if not PERSIMMON.fits(model.decoder):
        wrong.append("model.decoder has biases, norms or positions that Persimmon does not have together")
    # Its processor fills pictures up to them, and refuses what is no whole number of patches then.
    limits = {name: getattr(layout, name) for name in ("max_width", "max_height")}
    wrong += [
        f"layout.{name} must be a multiple of the patch's {layout.patch_size} px, is {limit}"
        for name, limit in limits.items()
        if limit % layout.patch_size
    ]
    if wrong:
        raise UserError(f"this system has no counterpart in transformers' Fuyu: {'; '.join(wrong)}")


def processor_files(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings}.

    A resolution of the layout's own is not among them: Otter resizes before it asks Fuyu's. `FuyuProcessor` of
    `transformers` 5 drops the first id before a text, which it takes for a lone "▁". That is true where `|SPEAKER|` is
    a piece like others, as in Fuyu's tokenizer; with one that was trained here (`Tokenizer.train`) it stops.
    """
    layout, vision = system.layout, system.model.vision
    settings = {
        "image_processor_type": "FuyuImageProcessor",
        "processor_class": "FuyuProcessor",
        "do_resize": True,
        "size": {"height": layout.max_height, "width": layout.max_width},
        "resample": _BILINEAR,
        "do_pad": True,
        "padding_value": 1.0,
        "padding_mode": "constant",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "patch_size": {"height": layout.patch_size, "width": layout.patch_size},
    }
    return {IMAGES: settings, PROCESSOR: {"processor_class": "FuyuProcessor"}}


def read_beside(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What describes the system besides `config.json`: settings of the image processor (errors as `read_settings`)."""
    del config
    return read_settings(folder)


def read_config(config: Mapping[str, Any], images: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` and the image processor's settings describe.

    Args:
      config: contents of `config.json`, in the style of the release or of `transformers` 4.52 to 5.x.
      images: settings of the image processor, as `read_beside` finds them.
      where: what to call the file in errors.

    Raises:
      UserError: naming every field with a value that this code does not have, or that is missing.
    """
    flat = {name: value for name, value in config.items() if name != "model_type"}
    fields = Fields({**config, "text_config": {**_DECODER, **(config.get("text_config") or flat)}}, where)
    text = fields.part("text_config")
    fields.need("num_channels", 3, 3)
    text.need("model_type", PERSIMMON.model_type, PERSIMMON.model_type)
    decoder = PERSIMMON.read(text, tied=config.get("tie_word_embeddings"))
    layout = _read_layout(fields, images, f"{where}: {SETTINGS}")
    statistics = read_statistics(images, f"{where}: {SETTINGS}")
    vision = PatchProjectionConfig(patch_size=layout.patch_size, width=decoder.width, patches=layout.slot, **statistics)
    template = fields.get("template", TEMPLATE)
    prompt = read_prompt(fields, template)
    fields.finish()
    model = VLMConfig(vision=vision, connector=IdentityConfig(), decoder=decoder)
    return System(model=model, layout=layout, template=template, system_prompt=prompt)


def _read_layout(fields: Fields, images: Mapping[str, Any], where: str) -> NativeRaster:
    """What is missing of the settings counts as Fuyu's."""
    settings, patch = Fields({**_PROCESSOR, **images}, where), fields.count("patch_size", 30)
    for name, value in (("do_resize", True), ("do_pad", True), ("resample", _BILINEAR), ("padding_mode", "constant")):
        settings.need(name, value, value)
    settings.need("padding_value", 1.0, 1.0)
    settings.need("patch_size", {"height": patch, "width": patch}, None)
    limit = settings.part("size")
    width, height = limit.count("width"), limit.count("height")
    settings.finish()
    sides = fields.get("resolutions", [])
    if not isinstance(sides, list) or not all(type(side) is int for side in sides):
        fields.wrong("resolutions", f"must be a list of whole numbers, is {sides!r}")
        fields.finish()
    return NativeRaster(
        patch_size=patch,
        max_width=width,
        max_height=height,
        slot=fields.count("patches_per_slot", NativeRaster.slot),
        side=None if fields.get("resolution") is None else fields.count("resolution"),
        sides=tuple(sides),
    )
