"""AdamW with warm-up, per-path learning rates and freezing, all named by ordered path globs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from vlm_jax import globs
from vlm_jax.config import config_class


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
      weight_decay, no_decay: decay, and the path globs it spares.
      clip_norm: global gradient norm limit; 0 turns clipping off.
      multipliers: (glob, factor) pairs; the last match scales the final update of a parameter.
    """

    type: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_ratio: float = 0.0
    warmup_ratio: float = 0.03
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ("**/bias", "**/scale")
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate of step 0, 1, ...: linear warm-up over ceil(steps * warmup_ratio) steps, then the schedule to the end."""
    warmup = math.ceil(steps * config.warmup_ratio)
    peak, end, rest = config.learning_rate, config.learning_rate * config.final_ratio, max(1, steps - warmup)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def without_schedule(config: OptimizerConfig) -> OptimizerConfig:
    """The config with the default rate and schedule: equal where two optimizers differ in nothing else."""
    return dataclasses.replace(config, **{name: getattr(OptimizerConfig(), name) for name in _SCHEDULE})


_SCHEDULE = ("learning_rate", "schedule", "final_ratio", "warmup_ratio")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The whole chain at learning rate 1: every update, weight decay included, is in proportion to the rate.

    It is given trainable parameters only, so frozen ones have no state.
    """

    def decayed(params: Any) -> Any:
        spared = {path: any(globs.matches(path, g) for g in config.no_decay) for path in globs.flatten(params)}
        return globs.unflatten({path: not spare for path, spare in spared.items()})

    if config.type == "muon":
        update = optax.contrib.muon(
            1.0,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            eps=config.eps,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_muon_dimensions,
            consistent_rms=0.2,
        )
        # Optax's mask reaches the matrices alone; the rest is decayed here.
        update = optax.chain(update, _decay_others(config.weight_decay, decayed))
    else:
        update = optax.adamw(
            1.0, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decayed
        )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, update, _scale_by_path(config.multipliers))


_MATRICES = (
    ("**", None),
    ("**/layers/**/kernel", MuonDimensionNumbers((0,), (-1,))),
    ("**/connector/*/kernel", MuonDimensionNumbers((0,), (-1,))),
    ("**/attention/*/kernel", MuonDimensionNumbers((0,), (1, 2))),
    ("**/attention/out/kernel", MuonDimensionNumbers((0, 1), (2,))),
)
"""Which parameters Muon takes, and how each is a matrix (which axes it sums over, which it makes); None is AdamW's."""


def _muon_dimensions(params: Any) -> Any:
    return globs.unflatten({path: globs.last_match(path, _MATRICES, None) for path in globs.flatten(params)})


def _decay_others(weight_decay: float, decayed: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Decoupled weight decay, at learning rate 1, of what is decayed and not Muon's."""

    def decay(updates: Any, params: Any) -> Any:
        flat, mask = globs.flatten(params), globs.flatten(decayed(params))
        ours = {path for path in flat if mask[path] and globs.last_match(path, _MATRICES, None) is None}
        pairs = globs.flatten(updates).items()
        return globs.unflatten({path: u - weight_decay * flat[path] if path in ours else u for path, u in pairs})

    return optax.stateless(decay)


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
