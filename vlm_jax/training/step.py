"""The train state and the compiled step that every stage runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from vlm_jax import globs
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.sharding import batch_sharding, replicated, tree_shardings
from vlm_jax.training.objectives import Models, Params
from vlm_jax.training.optimizer import (
    OptimizerConfig,
    cast,
    learning_rate,
    make_optimizer,
    merge,
    split_trainable,
    without_schedule,
)
from vlm_jax.training.recipe import Objective, Stage


class TrainState(NamedTuple):
    """All that a step changes, and what it only reads.

    Attributes:
      step: int32, optimizer steps done in this stage.
      trainable: float32 parameters that the stage's globs name.
      frozen: the other parameters of the parts that its objective reads, in the compute dtype; the very arrays that a
        stage was given, where they are in it already.
      optimizer: optax state of `trainable` alone.
    """

    step: jax.Array
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step computes: all that is compiled into it. Stages that share it share one compilation.

    Attributes:
      objective: what is minimised.
      trainable: ordered path globs of the parameters that move.
      accumulation: micro-batches that one step is made of.
      optimizer: without its schedule, which reaches the step as the rate of the moment.
      models: that the objective works on.
    """

    objective: Objective
    trainable: tuple[str, ...]
    accumulation: int
    optimizer: OptimizerConfig
    models: Models

    @classmethod
    def of(cls, stage: Stage, models: Models) -> Step:
        """The step of a stage."""
        optimizer, models = without_schedule(stage.optimizer), models.with_drop_path(stage.drop_path)
        return cls(stage.objective, stage.rules, stage.accumulation, optimizer, models)

    def new_state(self, params: Params) -> TrainState:
        """A fresh optimizer around `params`.

        Raises:
          UserError: a glob, or all together, match no parameter.
        """
        read, _ = self._read(params)
        globs.check(read, (glob.removeprefix("!") for glob in self.trainable), "trainable")
        globs.check(read, (glob for glob, _ in self.optimizer.multipliers), "optimizer.multipliers")
        trainable, _ = split_trainable(read, self.trainable)
        if not trainable:
            raise UserError(f"trainable: {', '.join(self.trainable)} leave no parameter to train")
        optimizer = make_optimizer(self.optimizer).init(trainable)
        return TrainState(jnp.zeros((), jnp.int32), trainable, self.frozen(params), optimizer)

    def frozen(self, params: Params) -> dict[str, Any]:
        """Of the objective's parts what it does not train; what has the compute dtype is no copy."""
        read, unused = self._read(params)
        return cast(merge(split_trainable(read, self.trainable)[1], unused), self.models.compute.dtype)

    def _read(self, params: Params) -> tuple[Params, Params]:
        """The parts that the objective reads, and of them what no forward pass reads: weight decay would move it."""
        parts = {part: tree for part, tree in params.items() if part in self.objective.parts}
        return split_trainable(parts, ("**", *(f"!{glob}" for glob in self.models.unused)))

    def run(
        self, moving: TrainState, frozen: Params, batch: Batch, key: jax.Array, rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step at learning rate `rate` (float32 scalar) and its metrics; `moving` has no frozen part."""
        state = moving._replace(frozen=frozen)
        key = jax.random.fold_in(key, state.step)
        grads, sums = self._gradients(state, batch, key)
        # Nothing to learn from in the whole batch: then the sums are 0 as well.
        weight = jnp.where(sums["weight"] > 0, sums["weight"], 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, optimizer = make_optimizer(self.optimizer).update(grads, state.optimizer, state.trainable)
        updates = jax.tree.map(lambda update: rate * update, updates)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": sums["loss"] / weight,
            **({"accuracy": sums["right"] / weight} if "right" in sums else {}),  # where answers are right or wrong
            "gradient_norm": optax.global_norm(grads),
            "learning_rate": rate,
            "tokens": jnp.sum(batch.segments > 0),
            "answers": jnp.sum((batch.loss_weights > 0) & (jnp.roll(batch.loss_weights, 1, axis=1) == 0)),
            "tiles": jnp.sum(batch.tile_grid[..., 0] > 0),
        }
        return TrainState(state.step + 1, trainable, {}, optimizer), metrics

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Gradients of the *sum* of losses, and the sums: dividing once at the end makes it one global mean."""

        def total(trainable: Params, batch: Batch, key: jax.Array) -> Any:
            loss, sums = self.objective(self.models, merge(trainable, state.frozen), batch, key)
            return loss, {**sums, "loss": loss}

        gradient = jax.grad(total, has_aux=True)
        n = self.accumulation
        if n == 1:
            return gradient(state.trainable, batch, key)
        # Row r goes to micro-batch r % n, so that every device keeps its own rows in each of them.
        micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, state.trainable, _first(micro), key))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            part = gradient(state.trainable, item[0], item[1])
            return jax.tree.map(jnp.add, carry, part), None

        return jax.lax.scan(add, zeros, (micro, jax.random.split(key, n)))[0]


@functools.lru_cache(maxsize=8)
def _compiled(step: Step, mesh: Mesh, places: tuple[NamedSharding, ...], structure: Any) -> tuple[Callable, Callable]:
    """The jitted `new_state` and `run` of a step whose state has these shardings."""
    shardings = jax.tree.unflatten(structure, places)
    moving = shardings._replace(frozen={})
    run = jax.jit(
        step.run,
        in_shardings=(moving, shardings.frozen, batch_sharding(mesh), replicated(mesh), replicated(mesh)),
        out_shardings=(moving, replicated(mesh)),
        donate_argnums=0,  # and nothing that is frozen: others may hold it
    )
    return jax.jit(lambda params: step.new_state(params)._replace(frozen={}), out_shardings=moving), run


class Trainer:
    """One stage on one mesh: makes its state and runs its steps.

    Attributes:
      shardings: of the state, leaf by leaf.
      abstract: shapes, dtypes and shardings of the state.
      rate: step number (int32) -> learning rate.
    """

    def __init__(self, stage: Stage, models: Models, mesh: Mesh, shapes: Params) -> None:
        """Builds the step for parameters of the given `shapes` (a tree of anything with shape and dtype).

        Raises:
          UserError: one of the stage's globs matches no parameter.
        """
        self.mesh = mesh
        self._step = Step.of(stage, models)
        try:
            abstract = jax.eval_shape(self._step.new_state, shapes)
        except UserError as error:
            raise UserError(f"config.stages '{stage.name}': {error}") from None
        self.shardings = tree_shardings(abstract, mesh)
        self.abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, self.shardings
        )
        places, structure = jax.tree.flatten(self.shardings)
        self._new_state, self._run = _compiled(self._step, mesh, tuple(places), structure)
        self.rate = jax.jit(learning_rate(stage.optimizer, stage.steps))

    def init(self, params: Params) -> TrainState:
        """A fresh optimizer around `params`, laid out on the mesh; frozen ones that lie right are not copied."""
        with jax.set_mesh(self.mesh):
            frozen = self._step.frozen(params)
            return self._new_state(params)._replace(frozen=jax.device_put(frozen, self.shardings.frozen))

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """The next state and the step's metrics; gives the memory of what moves in the old state back."""
        moving, metrics = self._run(state._replace(frozen={}), state.frozen, batch, key, self.rate(state.step))
        return moving._replace(frozen=state.frozen), metrics

    def lower(self, batch: Any, key: jax.Array) -> jax.stages.Lowered:
        """The step for such a batch before XLA compiles it."""
        moving, rate = self.abstract._replace(frozen={}), jax.ShapeDtypeStruct((), jnp.float32)
        return self._run.lower(moving, self.abstract.frozen, batch, key, rate)


def _first(batches: Batch) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
