"""Path globs: the one language in which freezing, learning rates, sharding and conversion name parameters.

`*` stands for anything within one part of a path, `**` for any number of parts, `{12..}` for a number from 12 on. Rules
are ordered and the last match wins, so that a recipe reads "everything, except ..." from top to bottom.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vlm_jax.errors import UserError

T = TypeVar("T")


_FROM = re.compile(r"\{\d+\.\.\}")


@functools.cache
def _pattern(glob: str) -> re.Pattern[str]:
    pieces = re.split(rf"(\*\*/|\*\*|\*|{_FROM.pattern})", glob)
    as_regex = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*"}
    numbers = {piece: r"(\d+)" for piece in pieces if _FROM.fullmatch(piece)}
    return re.compile("".join((as_regex | numbers).get(piece, re.escape(piece)) for piece in pieces))


def matches(path: str, glob: str) -> bool:
    """Whether `path` (parts joined by '/') matches `glob` as a whole."""
    found = _pattern(glob).fullmatch(path)
    if found is None:
        return False
    firsts = (int(piece[1:-3]) for piece in _FROM.findall(glob))
    return all(int(number) >= first for number, first in zip(found.groups(), firsts, strict=True))


def last_match(path: str, rules: Iterable[tuple[str, T]], default: T) -> T:
    """The value of the last rule (glob, value) whose glob matches `path`, else `default`."""
    found = default
    for glob, value in rules:
        if matches(path, glob):
            found = value
    return found


def check(tree: Mapping[str, Any], globs: Iterable[str], field: str) -> None:
    """Refuses globs that match no path of `tree`: a mistyped one would change nothing and say nothing.

    Raises:
      UserError: naming `field` and every such glob.
    """
    paths = flatten(tree)
    idle = [glob for glob in globs if not any(matches(path, glob) for path in paths)]
    if idle:
        raise UserError(f"{field}: no parameter matches {', '.join(idle)}; there are, for example, {_examples(paths)}")


def _examples(paths: Iterable[str]) -> str:
    """One path of every part."""
    return ", ".join({path.split("/")[0]: path for path in paths}.values())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {path: leaf}, in order. Anything that is not a mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, T]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
