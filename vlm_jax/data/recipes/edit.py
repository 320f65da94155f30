"""Edits of a mixture, as a list of operations: drop a source, replace it by others, add sources, cap.

    [sources]
    docvqa = "docvqa/train.jsonl"
    syndog_en = "syndog/meta.json"

    [[operations]]
    type = "replace"
    source = "textcaps"
    by = ["docvqa", "syndog_en"]

LLaVA-NeXT's data are LLaVA-1.5's after such edits (its release notes), SVIT's those of LLaVA-1.5 with the core set in
place of LLaVA-Instruct-150K. Where a published mixture is one file without names of sources, `same_as` says which of
its records are meant: those that another file has too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic

from vlm_jax.config import build, config_class
from vlm_jax.data.recipes.mix import capped
from vlm_jax.errors import UserError, did_you_mean
from vlm_jax.files import read_table

Mixture = dict[str, np.ndarray]
"""Numbers of the records that are kept, rising, by source."""


@config_class
class Drop:
    """Leaves a source out.

    Attributes:
      source: its name.
      same_as: name of a source: only the records go that it has too (`items.content_key`).
    """

    type: Literal["drop"] = "drop"
    source: str
    same_as: str = ""


@config_class
class Replace:
    """Leaves a source, or some of its records, out and takes others in.

    Attributes:
      source, same_as: as in `Drop`.
      by: names of what comes in its place, where it stood.
    """

    type: Literal["replace"] = "replace"
    source: str
    same_as: str = ""
    by: list[str]


@config_class
class Add:
    """Takes sources in, behind the others.

    Attributes:
      sources: their names.
    """

    type: Literal["add"] = "add"
    sources: list[str]


@config_class
class Cap:
    """Keeps at most so many records, drawn as in `mix.capped`.

    Attributes:
      records: how many of one source, from 1.
      source: its name; '' caps every source that the mixture has then.
    """

    type: Literal["cap"] = "cap"
    records: int
    source: str = ""


Operation = Annotated[Drop | Replace | Add | Cap, pydantic.Field(discriminator="type")]


@config_class
class Edits:
    """A file of edits.

    Attributes:
      sources: path by name of what may be taken in: any data set; relative paths count from the file's folder.
      operations: what is done, one after another.
    """

    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    operations: list[Operation]


def read_edits(path: Path) -> Edits:
    """Reads a file of edits, in TOML or JSON.

    Raises:
      UserError: naming the file and the field.
    """
    return build(Edits, read_table(path), str(path))


def apply(
    base: Mapping[str, int],
    offered: Mapping[str, int],
    operations: Sequence[Operation],
    *,
    seed: int = 0,
    keys: Callable[[str], Sequence[str]] | None = None,
) -> Mixture:
    """The mixture after all operations.

    Args:
      base: records by source of the mixture before.
      offered: records by source of what may be taken in, or compared with.
      operations: one after another.
      seed: of what caps draw.
      keys: gives the content key of every record of a source, base or offered; needed where `same_as` is used.

    Raises:
      UserError: naming the operation: a source that is not there, or is there already.
    """
    mixed = {name: np.arange(size) for name, size in base.items()}
    sizes = {**offered, **base}
    for number, operation in enumerate(operations):
        place = f"operations[{number}] ({operation.type})"
        match operation:
            case Drop():
                mixed = _replaced(mixed, operation, (), sizes, keys, place)
            case Replace():
                mixed = _replaced(mixed, operation, operation.by, sizes, keys, place)
            case Add():
                mixed |= _new(operation.sources, mixed, offered, f"{place}.sources")
            case Cap():
                mixed = _capped(mixed, operation, sizes, seed, place)
    return mixed


def _replaced(
    mixed: Mixture,
    operation: Drop | Replace,
    by: Sequence[str],
    sizes: Mapping[str, int],
    keys: Callable[[str], Sequence[str]] | None,
    place: str,
) -> Mixture:
    """The mixture with other sources where one stood; what is left of that one stands before them."""
    _known(operation.source, mixed, f"{place}.source")
    left = np.arange(0)
    if operation.same_as:
        _known(operation.same_as, sizes, f"{place}.same_as")
        assert keys is not None, "same_as needs the keys of records"
        left = _without(mixed[operation.source], keys(operation.source), set(keys(operation.same_as)))
        if len(left) == len(mixed[operation.source]):
            raise UserError(f"{place}.same_as: {operation.source} has no record that {operation.same_as} has too")
    others = {name: kept for name, kept in mixed.items() if name != operation.source}
    remaining = {operation.source: left} if len(left) else {}
    incoming = _new(by, {**others, **remaining}, sizes, f"{place}.by")
    result: Mixture = {}
    for name, kept in mixed.items():
        result |= {name: kept} if name != operation.source else {**remaining, **incoming}
    return result


def _without(kept: np.ndarray, keys: Sequence[str], others: Collection[str]) -> np.ndarray:
    return np.array([number for number in kept.tolist() if keys[number] not in others], np.int64)


def _new(names: Iterable[str], mixed: Mixture, offered: Mapping[str, int], place: str) -> Mixture:
    found: Mixture = {}
    for name in names:
        _known(name, offered, place)
        if name in mixed or name in found:
            raise UserError(f"{place}: '{name}' is in the mixture already")
        found[name] = np.arange(offered[name])
    return found


def _capped(mixed: Mixture, operation: Cap, sizes: Mapping[str, int], seed: int, place: str) -> Mixture:
    if operation.records < 1:
        raise UserError(f"{place}.records: must be at least 1, got {operation.records}")
    if operation.source:
        _known(operation.source, mixed, f"{place}.source")
    names = [operation.source] if operation.source else list(mixed)
    return mixed | {name: mixed[name][capped(len(mixed[name]), operation.records, name, seed)] for name in names}


def _known(name: str, there: Collection[str], place: str) -> None:
    if name not in there:
        known = f"there are {', '.join(there)}" if there else "there is none"
        raise UserError(f"{place}: no source '{name}'{did_you_mean(name, there)}; {known}")
