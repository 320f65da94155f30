"""Safetensors in a folder: one file or shards with an index, read tensor by tensor and written shard by shard.

bfloat16 stays bfloat16 (as `ml_dtypes` has it). Pickles are never read: a model folder is untrusted input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlm_jax import globs
from vlm_jax.convert import table
from vlm_jax.convert.lazy import LazyArray
from vlm_jax.convert.table import Shape
from vlm_jax.errors import UserError
from vlm_jax.files import read_json, refuse_links_out, share

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
SHARD_BYTES = 2 * 10**9
"""No written file is larger, unless a single tensor is."""


DTYPES: dict[str, np.dtype] = {"float32": _DTYPES["F32"], "bfloat16": _DTYPES["BF16"]}
"""What weights can be stored as."""


def open_params(
    folder: Path,
    rules: Iterable[table.Rule],
    shapes: Mapping[str, Shape],
    rename: Callable[[str], str] = str,
    left_out: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """A folder's weights as parameters, which are read when they are looked at.

    Args:
      folder: see `open_weights`, as `rename` and `left_out`.
      rules: the weight table.
      shapes: {path: shape} of every parameter.

    Returns:
      Nested dict of `LazyArray`.

    Raises:
      UserError: as `open_weights`, or the tensors do not fit: all problems at once.
    """
    plan = table.plan(rules, shapes)
    tensors = open_weights(folder, rename, left_out)
    table.check(plan, {key: tensor.shape for key, tensor in tensors.items()}, str(folder))
    return globs.unflatten(table.read(plan, tensors))


def write_params(
    folder: Path,
    rules: Iterable[table.Rule],
    params: Mapping[str, Any],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """The inverse of `open_params`; one shard is held in memory at a time.

    Args:
      folder: must exist.
      rules: the weight table.
      params: nested dict of arrays.
      dtype: a key of `DTYPES`.
      shard_bytes: largest size of a file.
      progress: called for every tensor.

    Raises:
      UserError: `dtype` is another.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    flat = globs.flatten(params)
    plan = table.plan(rules, {path: tuple(array.shape) for path, array in flat.items()})
    sizes = {key: math.prod(stored.shape) * DTYPES[dtype].itemsize for key, stored in plan.items()}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for key, tensor in table.write(plan, flat):
            yield key, tensor.astype(DTYPES[dtype], copy=False)
            progress()

    write_weights(folder, tensors(), sizes, shard_bytes)


def open_weights(
    folder: Path, rename: Callable[[str], str] = str, left_out: Callable[[str], bool] = lambda name: False
) -> dict[str, LazyArray]:
    """Reads the headers of all safetensors files that belong to the model in `folder`.

    Args:
      folder: holds `model.safetensors`, or shards and their index.
      rename: from a stored key to the name it goes by.
      left_out: tells of a name that nobody needs the tensor.

    Returns:
      Every other tensor by its name, file by file.

    Raises:
      UserError: there are no safetensors; a shard is missing, damaged, or does not hold what the index says; a file
        lies outside the folder; two tensors go by one name; a tensor does not hold floating-point numbers.
    """
    refuse_links_out(folder)
    tensors: dict[str, LazyArray] = {}
    for file, promised in _shards(folder).items():
        found = _header(folder / file)
        absent = sorted((promised or found.keys()) - found.keys())
        if absent:
            raise UserError(f"{folder / file}: {INDEX} says that it holds {', '.join(absent)}, it does not")
        for key, entry in found.items():
            name = rename(key)
            if name in tensors:
                raise UserError(f"{folder / file}: a second tensor '{key}' (as {name})")
            if not left_out(name):
                tensors[name] = _lazy(folder / file, key, entry)
    return tensors


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    sizes: Mapping[str, int],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors in their order; at most one shard is held in memory.

    Args:
      folder: must exist.
      tensors: (name, tensor).
      sizes: {name: bytes} of the same tensors in the same order, from which the shards are planned.
      shard_bytes: largest size of a file.
    """
    shards = _plan_shards(sizes, shard_bytes)
    stream = iter(tensors)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held = {name: np.ascontiguousarray(tensor) for name, tensor in (next(stream) for _ in names)}
        save_file(held, folder / file, metadata={"format": "pt"})  # transformers refuses files without it
        share(folder / file)
        index.update(dict.fromkeys(held, file))
        del held  # before the next one is gathered
    if len(shards) > 1:
        content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")


def _plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """File -> the keys that the index promises in it (None where there is no index)."""
    if (folder / WEIGHTS).is_file():  # before an index, as in `transformers`
        return {WEIGHTS: None}
    if (folder / INDEX).is_file():
        placed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
            raise UserError(f"{folder / INDEX}: not an index of shards: its weight_map must map tensors to files")
        shards: dict[str, set[str] | None] = {file: set() for file in sorted(set(placed.values()))}
        outside = [file for file in shards if Path(file).name != file]
        if outside:
            raise UserError(f"{folder / INDEX}: names a file outside the folder: {outside[0]}")
        for key, file in placed.items():
            shards[file].add(key)
        return shards
    pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
    hint = f" ({pickles[0]} is a pickle, which can run code: save the model again as safetensors)" if pickles else ""
    raise UserError(f"{folder}: no {WEIGHTS} and no {INDEX}{hint}")


def _header(file: Path) -> dict[str, Any]:
    """Every tensor of a file as its header has it, `start` (of the data in the file) added.

    The library checks that the header is sound and fits the file, but does not tell where a tensor lies.
    """
    if not file.is_file():
        raise UserError(f"{file}: this shard is missing")
    try:
        with safe_open(file, framework="numpy"), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return {key: {**entry, "start": 8 + length + entry["data_offsets"][0]} for key, entry in header.items()}


def _lazy(file: Path, key: str, entry: Mapping[str, Any]) -> LazyArray:
    if entry["dtype"] not in _DTYPES:
        raise UserError(
            f"{file}: tensor '{key}' is stored as {entry['dtype']}; only {', '.join(_DTYPES)} can be read "
            "(quantised weights must be turned back first)"
        )
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    return LazyArray(partial(_map, file, entry["start"], shape, dtype), shape, dtype)


def _map(file: Path, start: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """A tensor as a read-only memory map."""
    try:
        count = math.prod(shape)
        flat = np.memmap(file, dtype, "r", start, (count,)) if count else np.empty(0, dtype)
        return np.asarray(flat).reshape(shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot read it: {error}") from None
