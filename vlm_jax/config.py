"""From a `ConfigDict` (what people write and override) to frozen dataclasses (what the code reads), in one place.

A config file's `get_config` returns `complete(Recipe, {...})`: every field with its default, so that any of them can be
overridden from the command line. `build(Recipe, config)` then checks names and types of all fields, however deep.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import ml_collections
import pydantic

from vlm_jax.errors import UserError, did_you_mean

T = TypeVar("T")


def config_class(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass whose unknown fields and wrong types are errors."""
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def one_of(*classes: Any) -> Any:
    """The type of a field that holds one of these config classes, told apart by `type`; the first where none is given.

    The `type` of a class is the default of its field of that name.
    """
    names = [next(f.default for f in dataclasses.fields(cls) if f.name == "type") for cls in classes]

    def name_of(value: Any) -> str:
        return value.get("type", names[0]) if isinstance(value, Mapping) else getattr(value, "type", names[0])

    choices = [Annotated[cls, pydantic.Tag(name)] for cls, name in zip(classes, names, strict=True)]
    return Annotated[functools.reduce(operator.or_, choices), pydantic.Discriminator(name_of)]


def build(cls: Any, config: Mapping[str, Any] | ml_collections.ConfigDict, name: str = "config") -> Any:
    """Builds the dataclass (or tagged union) `cls` from plain values.

    Raises:
      UserError: naming every unknown field, missing field and value of the wrong type by its full path.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(to_plain(config)), strict=True)
    except pydantic.ValidationError as error:
        problems = [_describe(cls, problem, config, name) for problem in error.errors()]
        raise UserError("; ".join(problems)) from None


def complete(cls: Any, config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns `config` as a `ConfigDict` with every field of `cls` present, defaults included."""
    return to_config_dict(to_plain(build(cls, config)))


def to_plain(value: Any) -> Any:
    """Dataclasses, ConfigDicts and tuples as JSON-ready dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, ml_collections.FieldReference):
        return to_plain(value.get())
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def to_config_dict(value: Any) -> Any:
    """The inverse of `to_plain`: dicts become ConfigDicts, lists become tuples (whose items flags can override).

    None in a dict becomes a reference that holds None: flags can then give it a value of any type (`build` checks it).
    """
    if value is None:
        return ml_collections.config_dict.placeholder(object)
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({k: to_config_dict(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(to_config_dict(v) for v in value)
    return value


def flatten(value: Any, prefix: str = "config") -> dict[str, Any]:
    """Plain values as {full path: leaf}, with list items as `path[i]`, for comparing two configs field by field."""
    if isinstance(value, Mapping):
        items = [(f"{prefix}.{k}", v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{prefix}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for path, item in items:
        flat.update(flatten(item, path))
    return flat


def _describe(cls: Any, problem: Any, config: Any, name: str) -> str:
    """One pydantic problem as `config.stages[2].optimizer.lr: unknown field, ...`."""
    path, here, kind = name, config, ""
    for part in problem["loc"]:
        if _inside(here, part) is None and _inside(here, "type") == part:  # pydantic names the member of a union here
            kind = f" of type '{part}'"
            continue
        here = _inside(here, part)
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    field = str(problem["loc"][-1]) if problem["loc"] else name
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _all_field_names(cls)
        return f"{path}: unknown field{kind}{'' if field in names else did_you_mean(field, names)}"
    if problem["type"] == "union_tag_invalid":
        return f"{path}.type: there is no '{problem['ctx']['tag']}', there are {problem['ctx']['expected_tags']}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: required field is missing"
    return f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _inside(value: Any, part: str | int) -> Any:
    """A field or an item; None where there is no such thing."""
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None


def _all_field_names(cls: Any) -> set[str]:
    """Every field name that occurs anywhere in the schema of `cls`."""
    schema = pydantic.TypeAdapter(cls).json_schema()
    names: set[str] = set(schema.get("properties", ()))
    for definition in schema.get("$defs", {}).values():
        names.update(definition.get("properties", ()))
    return names
