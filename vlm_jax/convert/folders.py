"""Whole folders in and out: a complete model folder for `transformers`, and a training workdir."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from vlm_jax import checkpoints, globs
from vlm_jax.config import build
from vlm_jax.convert import internvl_chat, internvl_hf, table
from vlm_jax.convert.fields import CONFIG
from vlm_jax.convert.safetensors_folder import SHARD_BYTES, open_weights, write_weights
from vlm_jax.data.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig, init_params
from vlm_jax.system import System

DTYPES: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""What weights can be stored as."""

LAYOUTS = {"hf": internvl_hf, "internvl": internvl_chat}
"""Layouts of model folders by the names of `--layout`; a layout is a module with the same functions as the others."""


def parameter_shapes(model: VLMConfig) -> dict[str, table.Shape]:
    """{path: shape} of every parameter, without making any."""
    tree = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in globs.flatten(tree).items()}


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
) -> None:
    """Writes a model folder, all of it or nothing.

    In layout `hf` it loads with `AutoModelForImageTextToText` and `AutoProcessor`.

    Args:
      folder: written aside and renamed at the end.
      params: nested dict of arrays; parts that the system does not have (a teacher) are left out.
      system: what they are the parameters of.
      tokenizer: goes with them.
      dtype: of the written weights, a key of `DTYPES`.
      layout: a key of `LAYOUTS`.
      overwrite: replace what is there.
      shard_bytes: largest size of a weight file.

    Raises:
      UserError: the folder exists, the system has no counterpart in the layout, parameters are missing, or the disk
        is full.
    """
    folder = Path(folder)
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already exists; choose another place or remove it")
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    flat = globs.flatten(select_parts(params, system.model, str(folder)))
    ids = _token_ids(system, tokenizer)
    config = LAYOUTS[layout].write_config(system, dtype=dtype, **ids)
    plan = table.plan(LAYOUTS[layout].rules(config), parameter_shapes(system.model))
    sizes = {key: int(np.prod(stored.shape)) * DTYPES[dtype].itemsize for key, stored in plan.items()}
    tensors = ((key, tensor.astype(DTYPES[dtype])) for key, tensor in table.write(plan, _OnHost(flat)))
    with _aside(folder) as aside:
        write_weights(aside, tensors, sizes, shard_bytes)
        tokenizer.save(aside, system.chat_template)
        _write_json(aside / CONFIG, config)
        _write_json(
            aside / "generation_config.json",
            {"do_sample": False, "eos_token_id": ids["stop_id"], "pad_token_id": ids["pad_id"]},
        )
        for name, content in LAYOUTS[layout].processor_files(system).items():
            _write_json(aside / name, content)


def read_folder(folder: str | Path) -> tuple[dict[str, Any], System, Tokenizer]:
    """Reads a model folder of any layout: `config.json` says which.

    Returns:
      Parameters as a nested dict of NumPy arrays in the dtype they are stored in, the system, the tokenizer.

    Raises:
      UserError: a file is missing or damaged, the architecture is another, or the weights do not fit: all problems of
        the weights at once.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG)
    layout = _layout_of(config, folder)
    system = layout.read_config(config, layout.read_beside(folder, config), where=str(folder / CONFIG))
    tokenizer = Tokenizer.load(folder)
    return read_params(folder, system.model), system, tokenizer


def read_params(folder: str | Path, model: VLMConfig) -> dict[str, Any]:
    """The parameters alone (see `read_folder`)."""
    return globs.unflatten(dict(stream_params(Path(folder), model)))


def stream_params(folder: Path, model: VLMConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, parameter) one at a time, after everything was checked against the headers."""
    config = _read_json(folder / CONFIG)
    layout = _layout_of(config, folder)
    plan = table.plan(layout.rules(config), parameter_shapes(model))
    weights = open_weights(folder, layout.rename)
    table.check(plan, weights.shapes, str(folder))
    return table.read(plan, weights.tensors())


def _layout_of(config: Mapping[str, Any], folder: Path) -> Any:
    for layout in LAYOUTS.values():
        if config.get("model_type") == layout.MODEL_TYPE:
            return layout
    known = ", ".join(layout.MODEL_TYPE for layout in LAYOUTS.values())
    raise UserError(f"{folder / CONFIG}: model_type is {config.get('model_type')!r}; known: {known}")


def read_workdir(folder: str | Path, step: int | None = None) -> tuple[dict[str, Any], System, Tokenizer]:
    """Reads what training left in its workdir.

    Args:
      folder: the workdir.
      step: number of the checkpoint; the newest when None.

    Raises:
      UserError: a file is missing, there is no such checkpoint, or it does not fit the workdir's config.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG)
    if "system" not in config:
        raise UserError(f"{folder / CONFIG}: not the config of a training run: it has no 'system'")
    system = build(System, config["system"], name=f"{folder / CONFIG}: config.system")
    params, _ = checkpoints.read_params(folder / "checkpoints", step)
    return select_parts(params, system.model, str(folder)), system, Tokenizer.load(folder / "tokenizer")


def is_workdir(folder: Path) -> bool:
    """Whether `folder` is a training workdir (rather than a model folder)."""
    return (folder / CONFIG).is_file() and "system" in _read_json(folder / CONFIG)


def select_parts(params: Mapping[str, Any], model: VLMConfig, where: str) -> dict[str, Any]:
    """The model's own parts of `params` (a training run may hold a teacher besides), checked against its config.

    Raises:
      UserError: naming every missing, unknown and wrongly shaped parameter.
    """
    expected = parameter_shapes(model)
    parts = {path.split("/", 1)[0] for path in expected}
    chosen = {name: tree for name, tree in params.items() if name in parts}
    found = {path: tuple(leaf.shape) for path, leaf in globs.flatten(chosen).items()}
    problems = [f"missing: {path}" for path in expected if path not in found]
    problems += [f"not in this model: {path}" for path in found if path not in expected]
    problems += [
        f"wrong shape: {path} is {found[path]}, the config asks for {shape}"
        for path, shape in expected.items()
        if path in found and found[path] != shape
    ]
    if problems:
        raise UserError(f"{where}: the parameters do not fit the config: {'; '.join(problems)}")
    return chosen


class _OnHost(Mapping[str, np.ndarray]):
    """Arrays that are brought to the host when they are looked up, not all at once."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays

    def __getitem__(self, path: str) -> np.ndarray:
        return np.asarray(self._arrays[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _token_ids(system: System, tokenizer: Tokenizer) -> dict[str, int]:
    stop_id = tokenizer.token_id(system.chat_template.stop)
    try:
        pad_id = tokenizer.token_id("<|endoftext|>")
    except UserError:  # no padding token of its own: any id serves, because padding is masked
        pad_id = stop_id
    return {"image_id": tokenizer.image_id, "stop_id": stop_id, "pad_id": pad_id}


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, or vanishes if something fails."""
    aside, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        for left in (aside, old):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise UserError(f"{folder}: cannot write it: {'the disk is full' if full else error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
