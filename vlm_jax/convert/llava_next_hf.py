"""LLaVA-NeXT as `transformers` has it (`LlavaNextForConditionalGeneration`): what it has besides `llava_hf`.

Pictures at any resolution, in a grid of tiles with a learned vector behind each of its rows. Source:
`models/llava_next/{configuration,modeling}_llava_next.py` of `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert import llava_hf
from vlm_jax.convert.fields import Fields
from vlm_jax.convert.llava_hf import left_out, read_beside, rename
from vlm_jax.convert.llava_processors import PINPOINTS, RELEASED, read_any_res, write_any_res, write_pinpoints
from vlm_jax.convert.processors import SETTINGS
from vlm_jax.convert.table import Flat, Rule, rule
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.errors import UserError
from vlm_jax.models.connector import MLPConfig
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.system import System

__all__ = [
    "HOLDS", "MODEL_TYPE", "left_out", "processor_files", "read_beside", "read_config", "rename", "rules",
    "write_config",
]  # fmt: skip

ARCHITECTURE, MODEL_TYPE = "LlavaNextForConditionalGeneration", "llava_next"
HOLDS = (VisionConfig, MLPConfig, AnyRes)


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """The weight table of a folder with this config."""
    return [*llava_hf.rules(config), rule("connector/newline", "image_newline", Flat())]


def write_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system (arguments, entries and errors as in `llava_hf`)."""
    layout = system.layout
    wrong = [f"layout.{name} must be True, is False" for name in ("unpad", "newline") if not getattr(layout, name)]
    if not layout.grids:
        wrong.append("layout.grids must name a grid at least")
    if wrong:
        raise UserError(f"this system has no counterpart in transformers' {ARCHITECTURE}: {'; '.join(wrong)}")
    config = llava_hf.write_llava(system, ARCHITECTURE, MODEL_TYPE, image_id, stop_id, pad_id, dtype)
    return {**config, PINPOINTS: write_pinpoints(layout)}


def processor_files(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings} of the joint processor and the image processor."""
    return write_any_res(system)


def read_config(config: Mapping[str, Any], beside: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` and the image processor's settings describe (as `llava_hf.read_config`)."""
    fields, images = Fields(config, where), beside["images"]
    vision = llava_hf.read_vision(fields, images)
    layout = read_any_res(images, fields.get(PINPOINTS, RELEASED), vision, f"{where}: {SETTINGS}")
    return llava_hf.read_llava(fields, vision, layout, beside["template"])
