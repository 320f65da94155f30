"""Overrides, `--config.FIELD=VALUE`: sections of another type, and what is wrong with a field that cannot be set."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from vlm_jax.config import build, complete, to_plain
from vlm_jax.errors import UserError, did_you_mean

_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<place>[^\]]*)\]")

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list, as ('a', 'b')"}


def new_types(arguments: Iterable[str]) -> dict[str, str]:
    """Of `--config.data.type=tfds` the path of the section, ".data", and the name of its type."""
    found = (re.fullmatch(r"--?config(.+)\.type=(.+)", argument) for argument in arguments)
    return {match[1]: match[2] for match in found if match}


def with_types(cls: Any, config: ml_collections.ConfigDict, types: Mapping[str, str]) -> ml_collections.ConfigDict:
    """The config with sections of other types, whose fields can then be overridden too.

    A section keeps the values of the fields that its new type has as well, if they are right there; the other fields
    have their defaults. Where no such section fits into the config it stays what it was.

    Args:
      cls: what the config is built into.
      config: the recipe.
      types: of `new_types`.

    Raises:
      UserError: there is no type of this name.
    """
    plain = to_plain(config)
    for path, name in types.items():
        plain = _with_type(cls, plain, path, name)
    return complete(cls, plain)


def _with_type(cls: Any, config: dict[str, Any], path: str, name: str) -> dict[str, Any]:
    old = _section(config, path)
    if old is None or old.get("type") in (None, name):
        return config

    def changed(fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config with these fields of the section; None where it cannot be built."""
        new = copy.deepcopy(config)
        section = _section(new, path)
        section.clear()
        section.update(fields)
        try:
            return to_plain(build(cls, new))
        except UserError as error:
            if str(error).startswith(f"config{path}.type: "):
                raise  # there is no such type
            return None

    if same := changed({**old, "type": name}):  # another name of the same fields
        return same
    found = changed({"type": name})
    for key in old.keys() & (_section(found, path) if found else {}).keys() - {"type"}:
        found = changed({**_section(found, path), key: old[key]}) or found
    return found or config


def _section(config: dict[str, Any], path: str) -> Any:
    """The mapping that a path leads to, if it does."""
    here: Any = config
    for step in _STEP.finditer(path):
        try:
            here = here[step["name"] or int(step["place"])]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return here if isinstance(here, dict) else None


def missing_field(config: Mapping[str, Any], path: str) -> str:
    """What of a field's path is not there, and what is: one line, or '' where all of it leads somewhere.

    Args:
      config: the recipe.
      path: as `config.stages[9].steps`.
    """
    here, done = config, path.split(".", 1)[0]
    rest = path[len(done) :]
    if "".join(step.group() for step in _STEP.finditer(rest)) != rest:
        return f"--{path}: cannot be read; fields are named as in --config.stages[0].steps=500"
    for step in _STEP.finditer(rest):
        problem = _missing_name(here, done, step["name"]) if step["name"] else _missing_item(here, done, step["place"])
        if problem:
            return f"--{path}: {problem}"
        above, here = here, here[step["name"]] if step["name"] else here[int(step["place"])]
        if _is_list(above) and not isinstance(here, Mapping | ml_collections.ConfigDict):
            return f"--{path}: an item cannot be set by itself; set them all, as --{done}={above!r}"
        done += step.group()
    return ""


def wrong_value(config: Mapping[str, Any], path: str, value: str) -> str:
    """What a field that is there takes in place of `value`; '' where that is not known."""
    field: Any = config
    for step in _STEP.finditer(path[len(path.split(".", 1)[0]) :]):
        field = field[step["name"]] if step["name"] else field[int(step["place"])]
    if isinstance(field, Mapping | ml_collections.ConfigDict):
        return f"--{path}={value}: it has fields of its own, so set one of them: {', '.join(sorted(field))}"
    wanted = _WANTED.get(type(field))
    return f"--{path}={value}: must be {wanted}; the recipe has {field!r}" if wanted else ""


def _missing_name(here: Any, done: str, name: str) -> str:
    if isinstance(here, Mapping | ml_collections.ConfigDict):
        known = ", ".join(sorted(here))
        return "" if name in here else f"{done} has no '{name}'{did_you_mean(name, here)}; there are {known}"
    if _is_list(here):
        return f"{done} is a list: say which of {_items(here)}, as in {done}[{len(here) - 1}].{name}"
    if here is None:
        return f"{done} is None in this recipe, so that it has no fields"
    return f"{done} is {here!r}, which has no fields"


def _missing_item(here: Any, done: str, place: str) -> str:
    if not _is_list(here):
        return f"{done} is no list, so that it has no [{place}]"
    if re.fullmatch(r"-?\d+", place) and -len(here) <= int(place) < len(here):
        return ""
    return f"{done} has no [{place}]; there are {_items(here)}"


def _items(items: Sequence[Any]) -> str:
    """`[0] read, [1] find, ...`: the numbers of a list's items, with their names where they have some."""
    if not items:
        return "none"
    names = [item.get("name", "") if isinstance(item, Mapping | ml_collections.ConfigDict) else "" for item in items]
    if not any(names):
        return f"[0] to [{len(items) - 1}]"
    return ", ".join(f"[{number}] {name}" for number, name in enumerate(names))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
