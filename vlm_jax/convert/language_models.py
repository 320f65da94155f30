"""Language models on their own: any family's folder in, and a model's decoder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlm_jax.convert import table
from vlm_jax.convert.decoders import FAMILIES, IN_TRANSFORMERS, DecoderFamily, family_for, family_named
from vlm_jax.convert.fields import CONFIG, Fields
from vlm_jax.convert.folders import select, shapes_of, token_ids
from vlm_jax.convert.safetensors_folder import open_params, write_params
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, read_json, refuse_links_out, write_json
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vlm import init_decoder
from vlm_jax.system import System


def open_decoder(folder: str | Path) -> tuple[dict[str, Any], DecoderConfig, DecoderFamily]:
    """Opens a language model's own folder.

    Returns:
      Parameters under `decoder` (read when they are looked at), its config, and its family.

    Raises:
      UserError: as `folders.open_folder`.
    """
    folder = Path(folder)
    if folder.is_dir():
        refuse_links_out(folder)
    where = str(folder / CONFIG)
    content = read_json(folder / CONFIG)
    family = family_named(FAMILIES, "model_type", content.get("model_type"), where)
    fields = Fields(content, where)
    config = family.read(fields)
    fields.finish()

    def left_out(name: str) -> bool:
        # Of a tied head some folders hold a second copy, and older Llamas hold rotary frequencies, which follow from
        # the config.
        return name.endswith(".rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")

    params = open_params(folder, family.rules, decoder_shapes(config), left_out=left_out)
    return params, config, family


def write_decoder(
    folder: str | Path,
    params: Mapping[str, Any],
    system: System,
    tokenizer: Tokenizer,
    dtype: str = "float32",
    *,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes a model's decoder as a language model of `transformers`, all of it or nothing.

    Args:
      folder, params, system, tokenizer, dtype, progress: as in `folders.write_folder`; other parts are left out.

    Raises:
      UserError: the folder exists, `transformers` has no such language model, parameters are missing, or the disk is
        full.
    """
    folder, decoder = Path(folder), system.model.decoder
    family = family_for(IN_TRANSFORMERS, decoder)
    if family is None:
        raise UserError(
            "model.decoder: no family of transformers has these sizes, biases, norms and positions together"
        )
    with new_folder(folder) as aside:
        chosen = select(params, decoder_shapes(decoder), str(folder))
        ids = token_ids(system, tokenizer)
        write_params(aside, family.rules, chosen, dtype, progress=progress)
        tokenizer.save(aside, system.chat_template)
        write_json(aside / CONFIG, family.write(decoder, stop_id=ids["stop_id"], pad_id=ids["pad_id"], dtype=dtype))


def decoder_shapes(config: DecoderConfig) -> dict[str, table.Shape]:
    """{path: shape} of every parameter of a decoder, paths beginning with `decoder/`, without making any."""
    return shapes_of(partial(init_decoder, config))
