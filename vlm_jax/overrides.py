"""What is wrong with a `--config.FIELD=VALUE`: which part of the path is not there, and what is in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vlm_jax.errors import did_you_mean

_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<place>[^\]]*)\]")

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list, as ('a', 'b')"}


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
