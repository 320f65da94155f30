"""A vision-language model out of parts: a vision tower, a language model, and a fresh connector between them.

What InternVL's trainer does before its first stage (`internvl/train/internvl_chat_finetune.py`): nine tokens are added
to the tokenizer, the embedding and the head get a row for every id, and new rows are the mean of the old ones. The
prompt format's tokens are added behind them where they lack (Llama's and Vicuna's tokenizers have no `<|im_end|>`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax.convert.folders import Opened
from vlm_jax.convert.language_models import open_decoder
from vlm_jax.convert.towers import open_tower
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.models.connector import PixelShuffleMLPConfig, init_connector
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

_TEMPLATES = {"qwen2": "internvl2", "qwen3": "internvl2_5", "phi3": "phi3", "internlm2": "internlm2-chat"}
"""Prompt format of Mini-InternVL with such a decoder; others get the first."""


def assemble(
    vision: str | Path,
    decoder: str | Path,
    *,
    image_size: int | None = None,
    template: str = "",
    max_tiles: int = 12,
    seed: int = 0,
) -> Opened:
    """Puts a tower and a language model together.

    The head is untied from the embedding, as in every InternVL, and both have one row for each id of the tokenizer:
    rows that a release holds beyond its own tokenizer are cut off.

    Args:
      vision: folder of a tower (see `towers.open_tower`).
      decoder: folder of a language model with its tokenizer.
      image_size: side of a tile in pixels; the tower's own when None. Position embeddings are resized.
      template: prompt format; that of Mini-InternVL with such a decoder when empty.
      max_tiles: of one image.
      seed: of the connector.

    Raises:
      UserError: a folder is damaged or of another kind, or the parts do not fit together.
    """
    tower, vision_config = open_tower(vision, image_size)
    language, config, family = open_decoder(decoder)
    tokenizer = Tokenizer.load(decoder)
    known = tokenizer.vocab_size
    template = template or _TEMPLATES.get(family.model_type, "internvl2")
    if template not in TEMPLATES:
        raise UserError(f"there is no prompt format '{template}'; there are {', '.join(TEMPLATES)}")
    tokenizer = tokenizer.with_image_tokens(TEMPLATES[template])
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size, tie_embeddings=False)
    model = VLMConfig(vision=vision_config, connector=PixelShuffleMLPConfig(), decoder=config)
    system = System(
        model=model,
        layout=ClosestAspect(tile_size=vision_config.image_size, max_tiles=max_tiles),
        template=template,
    )
    fresh = init_connector(model.connector, (), vision_config, config.width, jax.random.key(seed))
    params = {
        "vision": tower["vision"],
        "connector": jax.tree.map(np.asarray, fresh),
        "decoder": _with_rows(language["decoder"], known, tokenizer.vocab_size),
    }
    return Opened(params, system, tokenizer)


def _with_rows(decoder: Mapping[str, Any], known: int, rows: int) -> dict[str, Any]:
    """Embedding and head with `rows` rows; those from `known` on are the mean of those before."""
    embedding = np.asarray(decoder["embedding"])
    old = {name: np.asarray(array).T for name, array in decoder.get("head", {}).items()} or {"kernel": embedding}
    head = {name: np.ascontiguousarray(_resized(array, known, rows).T) for name, array in old.items()}
    return {**decoder, "embedding": _resized(embedding, known, rows), "head": head}


def _resized(table: np.ndarray, known: int, rows: int) -> np.ndarray:
    old = table[:known]
    # Summed in float64: a sum of 150 000 numbers in bfloat16 would stand still.
    mean = old.mean(axis=0, dtype=np.float64).astype(table.dtype)
    return np.concatenate([old, np.broadcast_to(mean, (rows - len(old), *table.shape[1:]))])
