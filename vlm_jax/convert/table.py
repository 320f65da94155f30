"""Two-way weight tables: which stored tensor is which parameter, and how its layout differs.

A weight family is a list of `Rule`s. Nothing else is written for it: reading, writing and checking follow from it.
Both sides are strict (every tensor used, every parameter filled, every shape right) and all problems are told at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from einops import rearrange

from vlm_jax.convert.lazy import LazyArray
from vlm_jax.errors import UserError

Shape = tuple[int, ...]


class Transform(Protocol):
    """A reversible change of layout between one stored tensor and one parameter (or several: `Concatenated`).

    All methods take and give lists, in the order of the rule's paths. None changes the dtype. What `read` gives may be
    views of the tensor, so that of a memory map only the bytes are read that are used.
    """

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor of parameters with these shapes."""

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The stored tensor as parameters."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Parameters as the stored tensor."""


@dataclasses.dataclass(frozen=True)
class Flat:
    """Same values in the same order, stored with all dimensions merged: vectors, and biases of shape [H, Dh]."""

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """(product of the dimensions,)."""
        return (math.prod(shapes[0]),)

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Unmerges the dimensions."""
        return [tensor.reshape(shapes[0])]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Merges the dimensions."""
        return arrays[0].reshape(-1)


@dataclasses.dataclass(frozen=True)
class Same:
    """Stored as it is, after `leading` dimensions of size 1 (class token: two, position table: one)."""

    leading: int = 0

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Our shape after `leading` ones."""
        return (1,) * self.leading + tuple(shapes[0])

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Drops the leading dimensions."""
        return [tensor.reshape(shapes[0])]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Adds the leading dimensions."""
        return arrays[0].reshape((1,) * self.leading + arrays[0].shape)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """`torch.nn.Linear.weight` (out, in) and our kernel [*in, *out], e.g. [D, H, Dh] or, with in_axes=2, [H, Dh, D]."""

    in_axes: int = 1

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """(out, in)."""
        return (math.prod(shapes[0][self.in_axes :]), math.prod(shapes[0][: self.in_axes]))

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Transposes, then splits the dimensions."""
        return [tensor.T.reshape(shapes[0])]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Merges the dimensions, then transposes."""
        fan_in = math.prod(arrays[0].shape[: self.in_axes])
        return np.ascontiguousarray(arrays[0].reshape(fan_in, -1).T)


@dataclasses.dataclass(frozen=True)
class PatchKernel:
    """`torch.nn.Conv2d.weight` (D, 3, P, P) of a patch embedding and our kernel [P*P*3, D] over raw patches."""

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """(D, 3, P, P)."""
        values, width = shapes[0]
        side = math.isqrt(values // 3)
        return (width, 3, side, side)

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Brings the channels innermost, as the bytes of an image are."""
        return [rearrange(tensor, "d c p q -> (p q c) d")]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse."""
        side = math.isqrt(arrays[0].shape[0] // 3)
        return np.ascontiguousarray(rearrange(arrays[0], "(p q c) d -> d c p q", p=side, q=side))


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """Several parameters stored as one tensor, one after another along its first axis (fused q, k, v; gate and up)."""

    inner: Transform

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The parts' first dimensions added up."""
        parts = [self.inner.stored_shape([shape]) for shape in shapes]
        return (sum(part[0] for part in parts), *parts[0][1:])

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Cuts the tensor and reads every piece."""
        sizes = [self.inner.stored_shape([shape])[0] for shape in shapes]
        pieces = np.split(tensor, np.cumsum(sizes)[:-1])
        return [self.inner.read(piece, [shape])[0] for piece, shape in zip(pieces, shapes, strict=True)]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Writes every piece and joins them."""
        return np.concatenate([self.inner.write([array]) for array in arrays])


@dataclasses.dataclass(frozen=True)
class Grouped:
    """q, k and v stored KV head by KV head: its query heads, its key, its value (InternLM2, Persimmon).

    Stored is a kernel (G * (H/G + 2) * Dh, D); ours are [D, H, Dh], [D, G, Dh] and [D, G, Dh]. Biases have no D.
    """

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """(heads of all three kinds times head_dim, D)."""
        *width, _, head_dim = shapes[0]
        return (sum(shape[-2] for shape in shapes) * head_dim, *width)

    def read(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Takes the groups apart."""
        groups, head_dim = shapes[1][-2:]
        grouped = rearrange(tensor, "(g s h) ... -> ... g s h", g=groups, h=head_dim)
        queries = rearrange(grouped[..., :-2, :], "... g s h -> ... (g s) h")
        return [queries, grouped[..., -2, :], grouped[..., -1, :]]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Puts the groups together."""
        queries, keys, values = arrays
        queries = rearrange(queries, "... (g s) h -> ... g s h", g=keys.shape[-2])
        grouped = np.concatenate([queries, keys[..., None, :], values[..., None, :]], axis=-2)
        return np.ascontiguousarray(rearrange(grouped, "... g s h -> (g s h) ..."))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      paths: our parameters' paths (one, or several in the order of `Concatenated`); `{i}` is the layer's number.
      key: the stored tensor's name, with the same `{i}`.
      transform: how the layouts differ.
    """

    paths: tuple[str, ...]
    key: str
    transform: Transform


def rule(paths: str | tuple[str, ...], key: str, transform: Transform) -> Rule:
    """A `Rule`, with one path as a plain string."""
    return Rule((paths,) if isinstance(paths, str) else paths, key, transform)


def linear(path: str, key: str, in_axes: int = 1) -> list[Rule]:
    """A linear map: kernel and bias."""
    return [rule(f"{path}/kernel", f"{key}.weight", Kernel(in_axes)), rule(f"{path}/bias", f"{key}.bias", Flat())]


def norm(path: str, key: str) -> list[Rule]:
    """A norm: scale and bias."""
    return [rule(f"{path}/scale", f"{key}.weight", Flat()), rule(f"{path}/bias", f"{key}.bias", Flat())]


def as_saved(key: str, *parts: str) -> str:
    """The name that `save_pretrained` writes for a key in its style or the in-memory one (`model.language_model.*`).

    Args:
      key: a tensor's name.
      parts: of the model besides the language model, as they are called in names: "vision_tower".
    """
    if key == "lm_head.weight":
        return "language_model.lm_head.weight"
    key = re.sub(r"^model\.language_model\.", "language_model.model.", key)
    short = key.removeprefix("model.")
    return short if short.partition(".")[0] in parts else key


def prefixed(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The table of a part inside a larger model, where its keys begin with `prefix`."""
    return [dataclasses.replace(r, key=prefix + r.key) for r in rules]


@dataclasses.dataclass(frozen=True)
class Stored:
    """What one stored tensor holds: our paths, their shapes, the change of layout."""

    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]
    transform: Transform

    @property
    def shape(self) -> Shape:
        """Shape of the stored tensor."""
        return tuple(self.transform.stored_shape(self.shapes))


Plan = Mapping[str, Stored]
"""A table applied to one model: stored key -> what it holds."""


def plan(rules: Iterable[Rule], shapes: Mapping[str, Shape]) -> dict[str, Stored]:
    """Applies a table to a model.

    Args:
      rules: the table. A rule whose parameters the model lacks is not used.
      shapes: every parameter of the model, {path: shape}.

    Raises:
      ValueError: a parameter without a rule, or with two: a defect of the table.
    """
    found: dict[str, Stored] = {}
    used: set[str] = set()
    patterns = [(re.compile(re.escape(r.paths[0]).replace(r"\{i\}", r"(?P<i>\d+)")), r) for r in rules]
    for path in shapes:
        for pattern, r in patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            number = match.groupdict().get("i", "")
            paths = tuple(p.replace("{i}", number) for p in r.paths)
            if used & set(paths) or not set(paths) <= set(shapes):
                raise ValueError(f"the table's rules for {path} overlap, or name parameters that do not exist")
            used |= set(paths)
            stored = Stored(paths, tuple(tuple(shapes[p]) for p in paths), r.transform)
            found[r.key.replace("{i}", number)] = stored
    without = sorted(set(shapes) - used)
    if without:
        raise ValueError(f"the table has no rule for {', '.join(without)}")
    return found


def check(expected: Plan, found: Mapping[str, Shape], where: str) -> None:
    """Compares the stored tensors with what the model needs.

    Args:
      expected: what the model needs.
      found: {key: shape} of all stored tensors.
      where: what to call their place in the message.

    Raises:
      UserError: naming every missing tensor, every one that nothing uses, and every wrong shape.
    """
    problems = [f"missing: {key}" for key in expected if key not in found]
    problems += [f"not used by this model: {key}" for key in found if key not in expected]
    for key, stored in expected.items():
        if key in found and tuple(found[key]) != stored.shape:
            problems.append(f"wrong shape: {key} is {_show(found[key])}, the config asks for {_show(stored.shape)}")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{where}: the weights do not fit config.json ({count}): {'; '.join(problems)}")


def read(expected: Plan, tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Every parameter {path: array}, to be read when it is looked at. `check` comes first."""
    params: dict[str, LazyArray] = {}
    for key, stored in expected.items():
        for number, (path, shape) in enumerate(zip(stored.paths, stored.shapes, strict=True)):
            params[path] = LazyArray(partial(_part, tensors[key], stored, number), shape, tensors[key].dtype)
    return params


def _part(tensor: LazyArray, stored: Stored, number: int) -> np.ndarray:
    return stored.transform.read(tensor.open(), stored.shapes)[number]


def write(expected: Plan, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters {path: array} as (key, stored tensor), one at a time."""
    for key, stored in expected.items():
        yield key, stored.transform.write([np.asarray(params[path]) for path in stored.paths])


def _show(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
