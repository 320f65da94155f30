"""A vision-language model out of parts: a vision tower, a language model, and a fresh connector between them.

`assemble` makes an InternVL, as InternVL's trainer does before its first stage
(`internvl/train/internvl_chat_finetune.py`): nine tokens are added to the tokenizer, the embedding and the head get a
row for every id, and new rows are the mean of the old ones. The prompt format's tokens are added behind them where they
lack (Llama's and Vicuna's tokenizers have no `<|im_end|>`). `assemble_system` makes a system that is described already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax.config import flatten, to_plain
from vlm_jax.convert.folders import Opened
from vlm_jax.convert.language_models import open_decoder
from vlm_jax.convert.towers import open_tower
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.text.templates import TEMPLATES, Template
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.models.connector import PixelShuffleMLPConfig, init_connector
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

TRAINING = ("drop_path", "layer_scale", "position_waves")
"""Fields of a tower that matter to training or to fresh weights alone. (Whether there is a layer scale is no such.)"""

_SYSTEMS_OWN = (*TRAINING, "image_size", "feature_layer", "final_norm", "pooling_norm")
"""Fields of a tower that are the system's to say: the same parameters serve."""

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
    params = {
        "vision": tower["vision"],
        "connector": _fresh_connector(model, seed),
        "decoder": _with_rows(language["decoder"], known, tokenizer.vocab_size),
    }
    return Opened(params, system, tokenizer)


def assemble_system(
    system: System,
    vision: str | Path,
    decoder: str | Path,
    *,
    templates: Sequence[Template] = (),
    image_size: int | None = None,
    seed: int = 0,
) -> Opened:
    """A system's parameters: a tower's, a language model's, and a fresh connector of the system's kind.

    Of the tower, its size of image, the hidden state that it hands on, the norm behind the last layer, and what matters
    to training alone are the system's; of the language model, the number of rows, and an untied head. In all else the
    folders must be what the system says. Rows beyond the words of the folder's own tokenizer are as in `assemble`.

    Args:
      system: what to put together.
      vision: folder of a tower (see `towers.open_tower`); "" where the system has none and projects patches, which it
        begins to do at random.
      decoder: folder of a language model with its tokenizer.
      templates: prompt formats besides the system's own whose tokens the tokenizer gets.
      image_size: side in pixels of the images whose positions the tower is to have; the system's own when None.
      seed: of what is fresh.

    Returns:
      As `Opened` elsewhere, but the table of positions is that of `image_size`.

    Raises:
      UserError: a folder is damaged or of another kind, differs from the system, or has more words than the system has
        rows.
    """
    model = system.model
    told: list[str] = []
    params: dict[str, Any] = {}
    if vision:
        tower, found = open_tower(vision, image_size or model.vision.image_size)
        told += _other_tower(model.vision, found)
        params["vision"] = {
            model.vision.last_norm if name == found.last_norm else name: part
            for name, part in tower["vision"].items()
            if name != found.last_norm or model.vision.last_norm is not None
        }
    else:
        params["vision"] = _fresh_vision(model.vision, seed)
    language, config, _ = open_decoder(decoder)
    told += differences(model.decoder, config, "decoder", ("vocab_size", "tie_embeddings"))
    if model.decoder.tie_embeddings and not config.tie_embeddings:
        told.append("decoder.tie_embeddings is True, the folder's False")
    if told:
        folders = " with ".join(str(folder) for folder in (vision, decoder) if folder)
        raise UserError(f"{folders}: another model than config.system.model: {'; '.join(told)}")
    tokenizer = Tokenizer.load(decoder)
    known, rows = tokenizer.vocab_size, model.decoder.vocab_size
    for template in (system.chat_template, *templates):
        tokenizer = tokenizer.with_image_tokens(template)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"config.system.model.decoder.vocab_size is {rows}, but {decoder} has {known} words, and with the tokens "
            f"of the prompt formats {tokenizer.vocab_size}"
        )
    parts = _with_rows(language["decoder"], known, rows)
    if model.decoder.tie_embeddings:
        del parts["head"]
    params["decoder"] = parts
    if connector := _fresh_connector(model, seed):
        params["connector"] = connector
    return Opened(params, system, tokenizer)


def differences(ours: Any, theirs: Any, prefix: str, but: Collection[str] = ()) -> list[str]:
    """Fields of two configs that differ, as `vision.depth is 24, the folder's 2`.

    Args:
      ours, theirs: two configs.
      prefix: what the fields' names begin with; may be empty.
      but: names (without the prefix) that do not count.
    """
    first, second = (flatten(to_plain(config), prefix) for config in (ours, theirs))
    names = sorted(name for name in first.keys() | second.keys() if name.removeprefix(f"{prefix}.") not in but)
    return [
        f"{name.removeprefix('.')} is {first.get(name)!r}, the folder's {second.get(name)!r}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def _other_tower(ours: VisionConfig, theirs: VisionConfig) -> list[str]:
    """What keeps a folder's tower from being the system's."""
    told = differences(ours, theirs, "vision", _SYSTEMS_OWN)
    if (ours.layer_scale is None) != (theirs.layer_scale is None):
        told.append(f"vision.layer_scale is {ours.layer_scale!r}, the folder's {theirs.layer_scale!r}")
    if ours.last_norm is not None and theirs.last_norm is None:
        told.append(f"vision.{ours.last_norm} is True, the folder has no norm behind the last layer")
    return told


def _fresh_connector(model: VLMConfig, seed: int) -> dict[str, Any]:
    key = jax.random.key(seed)
    fresh = init_connector(model.connector, model.vectors, model.vision, model.decoder.width, key)
    return jax.tree.map(np.asarray, fresh)


def _fresh_vision(vision: Any, seed: int) -> dict[str, Any]:
    patches = np.zeros((1, vision.patches, 3 * vision.patch_size**2), np.uint8)
    return jax.tree.map(np.asarray, vision.module(Compute()).init(jax.random.key(seed), patches)["params"])


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
