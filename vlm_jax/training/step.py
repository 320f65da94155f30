"""The train state and the one compiled step that every stage runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_jax.batch import Batch
from vlm_jax.sharding import batch_sharding, replicated, tree_shardings
from vlm_jax.training.objectives import Models, Params
from vlm_jax.training.optimizer import cast, learning_rate, make_optimizer, merge, split_trainable
from vlm_jax.training.recipe import Stage


class TrainState(NamedTuple):
    """All that a step changes, and what it only reads.

    Attributes:
      step: int32, optimizer steps done in this stage.
      trainable: float32 parameters that the stage's globs name.
      frozen: the other parameters that its objective reads, in the compute dtype.
      optimizer: optax state of `trainable` alone.
    """

    step: jax.Array
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    optimizer: Any


class Trainer:
    """One stage on one mesh: makes its state and holds its compiled step.

    Attributes:
      shardings: of the state, leaf by leaf.
      step: (state, batch, key) -> (state, metrics); gives the old state's memory back.
    """

    def __init__(self, stage: Stage, models: Models, mesh: Mesh, shapes: Params) -> None:
        """Builds the step for parameters of the given `shapes` (a tree of anything with shape and dtype).

        Raises:
          ValueError: the stage's globs match no parameter.
        """
        self.stage, self.models, self.mesh = stage, models, mesh
        self.optimizer = make_optimizer(stage.optimizer, stage.steps)
        self.rate = learning_rate(stage.optimizer, stage.steps)
        abstract = jax.eval_shape(self._new_state, shapes)
        self.shardings = tree_shardings(abstract, mesh)
        self.abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, self.shardings
        )
        self.step: Callable[..., tuple[TrainState, dict[str, jax.Array]]] = jax.jit(
            self._step,
            in_shardings=(self.shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(self.shardings, replicated(mesh)),
            donate_argnums=0,
        )

    def init(self, params: Params) -> TrainState:
        """A fresh optimizer around `params`, laid out on the mesh."""
        with jax.set_mesh(self.mesh):
            return jax.jit(self._new_state, out_shardings=self.shardings)(params)

    def _new_state(self, params: Params) -> TrainState:
        params = {part: tree for part, tree in params.items() if part in self.stage.objective.parts}
        trainable, frozen = split_trainable(params, self.stage.trainable)
        if not trainable:
            raise ValueError(f"stage {self.stage.name}: no parameter matches {self.stage.trainable}")
        frozen = cast(frozen, self.models.compute.dtype)
        return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, self.optimizer.init(trainable))

    def _step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        grads, sums = self._gradients(state, batch, key)
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sums["right"] / sums["weight"],
            "gradient_norm": optax.global_norm(grads),
            "learning_rate": self.rate(state.step),
            "tokens": jnp.sum(batch.segments > 0),
            "conversations": jnp.sum(jnp.max(batch.segments, axis=1)),
            "tiles": jnp.sum(batch.tile_grid[..., 0] > 0),
        }
        return TrainState(state.step + 1, trainable, state.frozen, optimizer), metrics

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Gradients of the *sum* of losses, and the sums: dividing once at the end makes it one global mean."""

        def total(trainable: Params, batch: Batch, key: jax.Array) -> Any:
            loss, sums = self.stage.objective(self.models, merge(trainable, state.frozen), batch, key)
            return loss, {**sums, "loss": loss}

        gradient = jax.grad(total, has_aux=True)
        n = self.stage.accumulation
        if n == 1:
            return gradient(state.trainable, batch, key)
        # Row r goes to micro-batch r % n, so that every device keeps its own rows in each of them.
        micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0), batch)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, state.trainable, _first(micro), key))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            part = gradient(state.trainable, item[0], item[1])
            return jax.tree.map(jnp.add, carry, part), None

        return jax.lax.scan(add, zeros, (micro, jax.random.split(key, n)))[0]


def _first(batches: Batch) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)


def finished_params(state: TrainState, before: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters after a stage: those it trained, and the others as they were before it (not as cast for it)."""
    return merge(before, state.trainable)
