"""Where every array lives: the mesh, and two tables that lead from a parameter's path to mesh axes.

Path glob -> logical axes (what a dimension means) -> mesh axes (where it is split). A dimension that its mesh axis does
not divide (14 heads, 2 KV heads, a vocabulary of 151 655) falls to the next rule, down to "not split".
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax import globs
from vlm_jax.config import config_class
from vlm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("**", ()),
    ("**/embedding", ("vocab", "embed")),
    ("**/head/kernel", ("embed", "vocab")),
    ("**/head/bias", ("vocab",)),
    ("**/patch_embedding/kernel", (None, "embed")),
    ("**/position_embedding", (None, "embed")),
    ("**/attention/*/kernel", ("embed", "heads", "head_dim")),
    ("**/attention/*/bias", ("heads", "head_dim")),
    ("**/attention/out/kernel", ("heads", "head_dim", "embed")),
    ("**/attention/out/bias", ()),
    ("**/attention/*_norm/bias", ()),
    ("**/mlp/*/kernel", ("embed", "mlp")),
    ("**/mlp/*/bias", ("mlp",)),
    ("**/mlp/down/kernel", ("mlp", "embed")),
    ("**/mlp/down/bias", ()),
    ("**/connector/up/kernel", ("embed", "mlp")),
    ("**/connector/up/bias", ("mlp",)),
    ("**/connector/down/kernel", ("mlp", "embed")),
    ("**/connector/linear_*/kernel", ("embed", "mlp")),
    ("**/connector/linear_*/bias", ("mlp",)),
    ("**/distillation/*/kernel", ("embed", "mlp")),
)
"""Path glob -> logical axis of each dimension; the last match wins; () means replicated."""

LOGICAL_AXES: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("batch", ("data", "fsdp")),
    ("batch", "data"),
    ("batch", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("head_dim", "tensor"),
    ("vocab", "fsdp"),
    ("mlp", "fsdp"),
    ("head_dim", "fsdp"),
)
"""Logical axis -> mesh axes, in order of preference; each mesh axis splits an array once."""


@config_class
class MeshConfig:
    """How many ways each mesh axis splits; -1 (once) takes what devices are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def use_cpu_devices(count: int) -> None:
    """Lets JAX see the CPU as `count` devices; without effect for 0, after JAX has started, or where XLA_FLAGS says it.

    The machine's cores are shared among them.
    """
    flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count and not flag:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", count)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as data x fsdp x tensor.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise UserError(
            f"config.runtime.mesh: data x fsdp x tensor = {config.data} x {config.fsdp} x {config.tensor} "
            f"does not lay out {len(devices)} device(s)"
        )
    if devices[0].platform == "cpu":
        return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)
    # JAX's own default has become explicit axes, where a constraint is an assertion.
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def partition(shape: Sequence[int], axes: Sequence[str | None], mesh: Any) -> PartitionSpec:
    """Places each logical axis of an array of `shape` on the first mesh axes that are free and divide it."""
    placed: dict[int, str | tuple[str, ...]] = {}
    used: set[str] = set()
    for logical, target in LOGICAL_AXES:
        names = (target,) if isinstance(target, str) else target
        size = math.prod(mesh.shape[name] for name in names)
        for dimension, name in enumerate(axes):
            free = dimension not in placed and not used.intersection(names)
            if name == logical and free and size > 1 and shape[dimension] % size == 0:
                placed[dimension] = target
                used.update(names)
    return PartitionSpec(*(placed.get(i) for i in range(len(axes))))


def parameter_sharding(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of the parameter at `path` (optimizer moments use their parameter's)."""
    axes = globs.last_match(path, PARAMETER_AXES, ())
    if axes and len(axes) != len(shape):
        raise ValueError(f"sharding rule for {path} names {len(axes)} axes, the parameter has shape {tuple(shape)}")
    return NamedSharding(mesh, partition(shape, axes, mesh))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for a nested dict of arrays, or any pytree whose innermost dicts are such (an optax state, say).

    A leaf's path is that of the dict keys on the way to it, so a moment at `mu/vision/...` finds its parameter's rule.
    """

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        keys = [str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey)]
        axes = globs.last_match("/".join(keys), PARAMETER_AXES, ()) if keys else ()
        return NamedSharding(
            mesh, partition(leaf.shape, axes, mesh) if len(axes) == len(leaf.shape) else PartitionSpec()
        )

    return jax.tree_util.tree_map_with_path(place, tree)


def place(params: Mapping[str, Any], mesh: Mesh, dtype: str | None = None) -> dict[str, Any]:
    """Puts parameters on a mesh, one at a time; every host reads the parts that its devices hold.

    Args:
      params: nested dict of arrays, the same on all hosts: NumPy's, or anything with a shape and a dtype whose parts
        `array[index]` reads.
      mesh: their places follow from `PARAMETER_AXES`.
      dtype: what to cast to; as they are when None.
    """
    places = globs.flatten(tree_shardings(params, mesh))

    def put(path: str, array: Any) -> jax.Array:
        wanted = np.dtype(dtype or array.dtype)
        return jax.make_array_from_callback(
            tuple(array.shape), places[path], lambda index: np.asarray(array[index]).astype(wanted, copy=False)
        )

    return globs.unflatten({path: put(path, array) for path, array in globs.flatten(params).items()})


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over data and fsdp together, every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows_here(mesh: Mesh, rows: int) -> list[int]:
    """Which of a batch's `rows` rows this process's devices hold: those that it has to load, in order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return sorted({row for (part,) in places.values() for row in range(*part.indices(rows))})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to keep activation `x` split as the logical `axes` say; outside `jax.set_mesh` a no-op.

    It vanishes silently without a mesh, so a test counts the constraints in the compiled text.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(x.shape, axes, mesh))


def spread(x: jax.Array) -> jax.Array:
    """Gives every device of the mesh its share of `x` along the first axis, grown by zeros until they divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    missing = -len(x) % mesh.size
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    if sum(size > 1 for size in mesh.shape.values()) > 1:
        # From parts along two axes XLA finds no other way, and warns unless it is told.
        x = jax.lax.with_sharding_constraint(x, PartitionSpec())
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def describe(params: Mapping[str, Any], mesh: Mesh) -> list[str]:
    """One line per kind of parameter (layer numbers folded to *): its shape and how it is split. Printed once a run."""
    lines: dict[str, str] = {}
    for path, leaf in globs.flatten(params).items():
        kind = "/".join("*" if part.isdigit() else part for part in path.split("/"))
        spec = parameter_sharding(path, leaf.shape, mesh).spec
        lines.setdefault(kind, f"{kind} {tuple(leaf.shape)} {tuple(spec)}")
    return list(lines.values())
