"""AdamW and Muon with warm-up, per-path learning rates and freezing, all named by ordered path globs."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from vlm_jax import globs
from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.sharding import spread


@config_class
class OptimizerConfig:
    """AdamW or Muon. The defaults are those of InternVL's trainer (HF Trainer with its scripts' warm-up and decay).

    Attributes:
      type: "muon" orthogonalises the momentum of every kernel inside the layers and the connector (Jordan et al. 2024),
        scaled to the size of AdamW's updates (Liu et al. 2025) so that rates carry over; all else gets AdamW with
        Nesterov's momentum.
      learning_rate: at the end of warm-up.
      schedule: cosine to `final_ratio` times the rate, linear to it, or constant.
      warmup_ratio: share of the stage's steps in which the rate rises linearly from 0.
      warmup_steps: the same as a number of steps; above 0 it wins over `warmup_ratio`.
      weight_decay, no_decay: decay, and the path globs it spares. HF's Trainer spares biases and what is an
        `nn.LayerNorm` and so does decay the RMS norms of decoders, which is
        `no_decay=("**/bias", "vision/**/scale", "connector/**/scale")`.
      b1, b2, eps: of AdamW.
      momentum: of Muon.
      clip_norm: global gradient norm limit; 0 turns clipping off.
      multipliers: (glob, factor) pairs; the last match scales the final update of a parameter.
    """

    type: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_ratio: float = 0.0
    warmup_ratio: float = 0.03
    warmup_steps: int = 0
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ("**/bias", "**/scale")
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95
    clip_norm: float = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps: must not be negative, got {self.warmup_steps}")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate of step 0, 1, ...: linear warm-up from 0, then the schedule to the end.

    With `final_ratio` 0 these are `get_{cosine,linear,constant}_schedule_with_warmup` of `transformers`, with the
    warm-up that its `TrainingArguments` ask for: `warmup_steps`, or else ceil(steps * warmup_ratio).
    """
    warmup = config.warmup_steps or math.ceil(steps * config.warmup_ratio)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        left = jnp.clip((steps - jnp.asarray(step)) / max(1, steps - warmup), 0.0, 1.0)  # from 1 to 0
        # sin(x)^2 with x = pi/2 * left is (1 + cos(pi * (1 - left))) / 2, and exact in float32 where that is near 0.
        shape = {"cosine": jnp.sin(jnp.pi / 2 * left) ** 2, "linear": left, "constant": 1.0}[config.schedule]
        after = config.final_ratio + (1.0 - config.final_ratio) * shape
        return config.learning_rate * jnp.where(step < warmup, step / max(1, warmup), after)

    return rate


def without_schedule(config: OptimizerConfig) -> OptimizerConfig:
    """The config with the default rate and schedule: equal where two optimizers differ in nothing else."""
    return dataclasses.replace(config, **{name: getattr(OptimizerConfig(), name) for name in _SCHEDULE})


_SCHEDULE = ("learning_rate", "schedule", "final_ratio", "warmup_ratio", "warmup_steps")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The whole chain at learning rate 1: every update, weight decay included, is in proportion to the rate.

    It is given trainable parameters only, so frozen ones have no state.
    """

    def decayed(params: Any) -> Any:
        spared = {path: any(globs.matches(path, g) for g in config.no_decay) for path in globs.flatten(params)}
        return globs.unflatten({path: not spare for path, spare in spared.items()})

    muon = config.type == "muon"
    direction = optax.scale_by_adam(config.b1, config.b2, config.eps, nesterov=muon)
    if muon:
        direction = optax.partition({"muon": _muon(config.momentum), "adam": direction}, _muon_or_adam)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    return optax.chain(clip, direction, decay, optax.scale(-1.0), _scale_by_path(config.multipliers))


_MATRICES = (
    ("**", 0),
    ("**/layers/**/kernel", 1),
    ("**/connector/*/kernel", 1),
    ("**/attention/out/kernel", 2),
)
"""Path glob -> how many leading axes of a parameter are the matrix's input, the others being its output; the last match
wins. 0: it is no matrix of Muon's, but AdamW's."""


def _muon_or_adam(params: Any) -> Any:
    labels = {path: "muon" if globs.last_match(path, _MATRICES, 0) else "adam" for path in globs.flatten(params)}
    return globs.unflatten(labels)


def _muon(momentum: float, rms: float = 0.2) -> optax.GradientTransformation:
    """Nesterov's momentum, orthogonalised; `rms` is the size of an entry of the update of a full-rank matrix."""
    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(lambda tree, _: _orthogonal(tree, rms)))


def _orthogonal(tree: Any, rms: float) -> Any:
    """Orthogonalises every kernel as a matrix.

    Matrices of one shape go through Newton-Schulz as one batch, which compiles once and runs fast where they are small.
    On a mesh every device takes its share of whole matrices, instead of all doing the same or each a part of every
    product (Liu et al. 2025, "distributed Muon").
    """
    leaves, structure = jax.tree.flatten_with_path(tree)
    shapes, batches = [], collections.defaultdict(list)
    for key_path, leaf in leaves:
        inputs = globs.last_match("/".join(str(key.key) for key in key_path), _MATRICES, 0)
        shape = math.prod(leaf.shape[:inputs]), math.prod(leaf.shape[inputs:])
        shapes.append(shape)
        wide = leaf.reshape(shape) if shape[0] <= shape[1] else leaf.reshape(shape).T
        batches[wide.shape].append(wide)
    done = {}
    for (rows, columns), matrices in batches.items():
        done[rows, columns] = iter(_newton_schulz(jnp.stack(matrices)) * (rms * columns**0.5))
    wide = [next(done[min(shape), max(shape)]) for shape in shapes]
    flat = [matrix if shape[0] <= shape[1] else matrix.T for matrix, shape in zip(wide, shapes, strict=True)]
    return structure.unflatten([matrix.reshape(leaf.shape) for matrix, (_, leaf) in zip(flat, leaves, strict=True)])


def _newton_schulz(matrices: jax.Array) -> jax.Array:
    """[n, rows, columns] -> the same, each matrix nearly orthogonal."""
    count = len(matrices)
    # Optax's transformation without its momentum, which knows of no batch and would be kept once a batch.
    step = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=[MuonDimensionNumbers(1, 2)])
    batch = [spread(matrices)]
    (batch,), _ = step.update(batch, step.init(batch))
    return batch[:count]


def _scale_by_path(rules: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the final update, not the gradient: Adam is blind to the gradient's scale."""

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        flat = globs.flatten(updates)
        return globs.unflatten({path: u * globs.last_match(path, rules, 1.0) for path, u in flat.items()})

    return optax.stateless(scale) if rules else optax.identity()


def split_trainable(params: Mapping[str, Any], trainable: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts a tree into (trainable, frozen): what matches any glob trains; a leading '!' takes back.

    Ordered, the last match wins: ("decoder/**", "!decoder/layers/0/**").
    """
    rules = [(glob.removeprefix("!"), not glob.startswith("!")) for glob in trainable]
    flat = globs.flatten(params)
    chosen = {path: leaf for path, leaf in flat.items() if globs.last_match(path, rules, False)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return globs.unflatten(chosen), globs.unflatten(rest)


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_trainable`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(globs.flatten(tree))
    return globs.unflatten(flat)


def cast(tree: Any, dtype: str) -> Any:
    """Casts every leaf (frozen parts are held in the compute dtype)."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
