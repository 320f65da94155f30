"""Safetensors in a folder: one file or shards with an index, read tensor by tensor and written shard by shard.

bfloat16 stays bfloat16 (as `ml_dtypes` has it). Pickles are never read: a model folder is untrusted input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlm_jax.convert.table import Shape
from vlm_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""No written file is larger, unless a single tensor is."""


@dataclasses.dataclass(frozen=True)
class WeightFolder:
    """The tensors of a folder; only headers are read until `tensors` runs.

    Attributes:
      folder: where they lie.
      shapes: {name: shape} of every tensor.
    """

    folder: Path
    shapes: Mapping[str, Shape]
    _files: Mapping[str, Mapping[str, str]]  # file -> name -> key in that file

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, tensor), file by file.

        Raises:
          UserError: naming the file that cannot be read.
        """
        for file, keys in self._files.items():
            try:
                with safe_open(self.folder / file, framework="numpy") as opened:
                    for name, key in keys.items():
                        yield name, opened.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder / file}: cannot read it: {error}") from None


def open_weights(folder: Path, rename: Callable[[str], str] = str) -> WeightFolder:
    """Reads the headers of all safetensors files that belong to the model in `folder`.

    Args:
      folder: holds `model.safetensors`, or shards and their index.
      rename: from a stored key to the name it goes by.

    Raises:
      UserError: there are no safetensors; a shard is missing, damaged, or does not hold what the index says; two
        tensors go by one name.
    """
    shapes: dict[str, Shape] = {}
    files: dict[str, dict[str, str]] = {}
    for file, promised in _shards(folder).items():
        found = _header(folder / file)
        absent = sorted((promised or found.keys()) - found.keys())
        if absent:
            raise UserError(f"{folder / file}: {INDEX} says that it holds {', '.join(absent)}, it does not")
        files[file] = {}
        for key, shape in found.items():
            name = rename(key)
            if name in shapes:
                raise UserError(f"{folder / file}: a second tensor '{key}' (as {name})")
            shapes[name] = shape
            files[file][name] = key
    return WeightFolder(folder, shapes, files)


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
        index.update(dict.fromkeys(held, file))
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
    if (folder / INDEX).is_file():
        try:
            placed: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / INDEX}: not an index of shards: {error!r}") from None
        shards: dict[str, set[str] | None] = {file: set() for file in sorted(set(placed.values()))}
        outside = [file for file in shards if Path(file).name != file]
        if outside:
            raise UserError(f"{folder / INDEX}: names a file outside the folder: {outside[0]}")
        for key, file in placed.items():
            shards[file].add(key)
        return shards
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
    hint = f" ({pickles[0]} is a pickle, which can run code: save the model again as safetensors)" if pickles else ""
    raise UserError(f"{folder}: no {WEIGHTS} and no {INDEX}{hint}")


def _header(file: Path) -> dict[str, Shape]:
    if not file.is_file():
        raise UserError(f"{file}: this shard is missing")
    try:
        with safe_open(file, framework="numpy") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from None
