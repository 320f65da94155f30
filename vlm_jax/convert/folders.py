"""Model folders of the PyTorch world, in and out: weights, config, tokenizer, chat template, image processor."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vlm_jax import globs
from vlm_jax.convert import fuyu_hf, internvl_chat, internvl_hf, llava_hf, llava_next_hf, table
from vlm_jax.convert.fields import CONFIG
from vlm_jax.convert.lazy import materialise
from vlm_jax.convert.safetensors_folder import SHARD_BYTES, open_params, write_params
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, read_json, refuse_links_out, write_json
from vlm_jax.models.vlm import VLMConfig, init_params
from vlm_jax.system import System

LAYOUTS: Mapping[str, tuple[Any, ...]] = {
    "hf": (internvl_hf, llava_hf, llava_next_hf, fuyu_hf),
    "internvl": (internvl_chat,),
}
"""Layouts of model folders by the names of `--layout`, and the kinds of model that each has.

A kind is a module with the same functions as the others. Its `MODEL_TYPE` is that of its `config.json`; its `HOLDS` are
the classes of the configs of vision, connector and image layout that it has a counterpart for.
"""


class Opened(NamedTuple):
    """A model in its place.

    Attributes:
      params: nested dict of arrays; those of a model folder are read when they are looked at (`LazyArray`).
      system: what they are the parameters of.
      tokenizer: goes with them.
    """

    params: dict[str, Any]
    system: System
    tokenizer: Tokenizer


def parameter_shapes(model: VLMConfig) -> dict[str, table.Shape]:
    """{path: shape} of every parameter, without making any."""
    return shapes_of(partial(init_params, model))


def shapes_of(init: Callable[[jax.Array], Any]) -> dict[str, table.Shape]:
    """{path: shape} of what a function makes from a random key, without making it."""
    return {path: tuple(leaf.shape) for path, leaf in globs.flatten(jax.eval_shape(init, jax.random.key(0))).items()}


def write_folder(
    folder: str | Path,
    params: Mapping[str, Any],
    system: System,
    tokenizer: Tokenizer,
    dtype: str = "float32",
    layout: str = "hf",
    *,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes a model folder, all of it or nothing.

    In layout `hf` it loads with `AutoModelForImageTextToText` and `AutoProcessor`.

    Args:
      folder: written aside and renamed at the end.
      params: nested dict of arrays; parts that the system does not have (a teacher) are left out. One shard of them is
        held in memory at a time.
      system: what they are the parameters of.
      tokenizer: goes with them.
      dtype: of the written weights, a key of `DTYPES`.
      layout: a key of `LAYOUTS`; of its kinds it is the one that the system's parts belong to.
      overwrite: replace what is there.
      shard_bytes: largest size of a weight file.
      progress: called for every tensor.

    Raises:
      UserError: the folder exists, the system has no counterpart in the layout, parameters are missing, or the disk
        is full.
    """
    folder = Path(folder)
    with new_folder(folder, overwrite=overwrite) as aside:
        chosen = select_parts(params, system.model, str(folder))
        ids = token_ids(system, tokenizer)
        kind = _kind_for(system, layout)
        config = kind.write_config(system, dtype=dtype, **ids)
        write_params(aside, kind.rules(config), chosen, dtype, shard_bytes, progress)
        tokenizer.save(aside, system.chat_template)
        write_json(aside / CONFIG, config)
        generation = {"do_sample": False, "eos_token_id": ids["stop_id"], "pad_token_id": ids["pad_id"]}
        write_json(aside / "generation_config.json", generation)
        for name, content in kind.processor_files(system).items():
            write_json(aside / name, content)


def why_not(system: System, layout: str = "hf") -> str | None:
    """Why `write_folder` cannot write such a system in a layout; None where it can."""
    try:
        _kind_for(system, layout).write_config(system, image_id=0, stop_id=0, pad_id=0, dtype="float32")
    except UserError as error:
        return str(error)
    return None


def open_folder(folder: str | Path) -> Opened:
    """Opens a model folder of any layout (`config.json` says which) and checks the headers of its weights.

    Raises:
      UserError: a file is missing or damaged, the architecture is another, or the weights do not fit: all problems of
        the weights at once.
    """
    folder = Path(folder)
    system = read_system(folder)
    return Opened(open_model_params(folder, system.model), system, Tokenizer.load(folder))


def read_system(folder: Path) -> System:
    """What a model folder of any layout holds the parameters of, which are not looked at (errors as `open_folder`)."""
    config = _read_config(folder)
    kind = _kind_of(config, folder)
    return kind.read_config(config, kind.read_beside(folder, config), where=str(folder / CONFIG))


def read_folder(folder: str | Path) -> Opened:
    """`open_folder` with all parameters read into memory, as NumPy arrays in the dtype they are stored in."""
    opened = open_folder(folder)
    return opened._replace(params=materialise(opened.params))


def open_model_params(folder: Path, model: VLMConfig) -> dict[str, Any]:
    """The parameters alone (see `open_folder`)."""
    config = _read_config(folder)
    kind = _kind_of(config, folder)
    patterns = kind.left_out(config)
    return open_params(
        folder,
        kind.rules(config),
        parameter_shapes(model),
        lambda key: kind.rename(key, config),
        lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns),
    )


def select_parts(params: Mapping[str, Any], model: VLMConfig, where: str) -> dict[str, Any]:
    """The model's own parts of `params` (a training run may hold a teacher besides), checked against its config.

    Raises:
      UserError: naming every missing, unknown and wrongly shaped parameter.
    """
    return select(params, parameter_shapes(model), where)


def select(params: Mapping[str, Any], shapes: Mapping[str, table.Shape], where: str) -> dict[str, Any]:
    """The parts of `params` that `shapes` names parameters of, checked against it (errors as `select_parts`)."""
    parts = {path.split("/", 1)[0] for path in shapes}
    chosen = {name: tree for name, tree in params.items() if name in parts}
    found = {path: tuple(leaf.shape) for path, leaf in globs.flatten(chosen).items()}
    problems = [f"missing: {path}" for path in shapes if path not in found]
    problems += [f"not in this model: {path}" for path in found if path not in shapes]
    problems += [
        f"wrong shape: {path} is {found[path]}, the config asks for {shape}"
        for path, shape in shapes.items()
        if path in found and found[path] != shape
    ]
    if problems:
        raise UserError(f"{where}: the parameters do not fit the config: {'; '.join(problems)}")
    return chosen


def token_ids(system: System, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the placeholder, of the token that ends a turn, and of padding."""
    template = system.chat_template
    stop_id, pad_id = tokenizer.stop_id(template), tokenizer.pad_id
    return {
        "image_id": tokenizer.token_id(template.image_context),
        "stop_id": stop_id,
        "pad_id": stop_id if pad_id is None else pad_id,  # any id serves, because padding is masked
    }


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_dir():
        refuse_links_out(folder)
    return read_json(folder / CONFIG)


def _kind_of(config: Mapping[str, Any], folder: Path) -> Any:
    """The kind of model that a folder holds."""
    known = {kind.MODEL_TYPE: kind for kinds in LAYOUTS.values() for kind in kinds}
    if config.get("model_type") not in known:
        raise UserError(f"{folder / CONFIG}: model_type is {config.get('model_type')!r}; known: {', '.join(known)}")
    return known[config["model_type"]]


def _kind_for(system: System, layout: str) -> Any:
    """The kind of model of a layout that the system's parts belong to."""
    parts = (system.model.vision, system.model.connector, system.layout)
    for kind in LAYOUTS[layout]:
        if all(isinstance(part, held) for part, held in zip(parts, kind.HOLDS, strict=True)):
            return kind
    known = "; ".join(f"{kind.MODEL_TYPE} has {_types(kind.HOLDS)}" for kind in LAYOUTS[layout])
    raise UserError(f"no model of the layout '{layout}' has {_types(parts)}: {known}")


def _types(parts: Iterable[Any]) -> str:
    """Vision, connector and image layout, by the `type` of their configs."""
    return " with ".join(part.type for part in parts)
