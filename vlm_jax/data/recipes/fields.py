"""Fields of annotation files, which others wrote: what is missing or of another type is named by its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import UserError


def objects(content: Mapping[str, Any], field: str, file: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its place ("annotations[3]", behind what the file is called, if anything).

    Raises:
      UserError: the field is missing, no list, or holds something else.
    """
    place = f"{file}: {field}" if file else field
    values = content.get(field)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError(f"{place}: must be a list of objects")
    return [(f"{place}[{number}]", value) for number, value in enumerate(values)]


def get(fields: Mapping[str, Any], field: str, kind: type, place: str) -> Any:
    """A field of an object.

    Raises:
      UserError: it is missing or of another type.
    """
    value = fields.get(field)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{place}.{field}: must be of type {kind.__name__}, got {value!r}")
    return value
