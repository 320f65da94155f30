"""Estimates of the time left, on made-up clocks."""

import dataclasses

import jax
import pytest

from vlm_jax.sharding import MeshConfig, make_mesh
from vlm_jax.training.loop import initial_params
from vlm_jax.training.step import Trainer
from vlm_jax.training.time_left import ENOUGH, TimeLeft, step_cost


def test_nothing_is_claimed_before_it_can_be_known():
    left = TimeLeft([100, 50], [1.0, 2.0])
    left.begin(0)
    assert left.left(0) is None
    left.add(30.0)  # compiles
    for step in range(1, ENOUGH):
        assert left.left(step) is None
        left.add(0.5)
    left.add(0.5)
    here, training = left.left(5)
    assert here == pytest.approx(95 * 0.5)
    assert training == pytest.approx(95 * 0.5 + 50 * 2.0 * 0.5 + 30)


def test_a_stage_to_come_counts_by_its_cost_and_its_first_step():
    left = TimeLeft([10, 10, 10], [1.0, 4.0, 2.0])
    left.begin(0)
    for seconds in (20.0, *[1.0] * 9):
        left.add(seconds)
    left.begin(1)  # from the first moment on, by what the stage before took
    assert left.left(0) == pytest.approx((10 * 4.0 + 20, 10 * 4.0 + 20 + 10 * 2.0 + 20))
    for seconds in (10.0, *[3.0] * 4):
        left.add(seconds)
    here, training = left.left(5)
    assert here == pytest.approx(5 * 3.0)  # by its own steps, as soon as there are some
    rate = (9 * 1.0 + 4 * 3.0) / (9 * 1.0 + 4 * 4.0)
    assert training == pytest.approx(here + 10 * 2.0 * rate + 15.0)


def test_a_run_that_is_continued_does_not_take_its_compilation_for_a_step():
    left = TimeLeft([100], [1.0])
    left.begin(0)
    left.add(60.0)
    for _ in range(10):
        left.add(0.1)
    assert left.left(61) == pytest.approx((3.9, 3.9))


def test_the_speed_of_late_counts():
    left = TimeLeft([1000], [1.0])
    left.begin(0)
    for seconds in [1.0] * 101 + [2.0] * 100:
        left.add(seconds)
    assert left.left(201)[0] == pytest.approx(799 * 2.0)


def test_cost_of_a_step(recipe, params):
    """What trains is passed three times, what is frozen once, or twice where gradients pass a decoder."""
    mesh, student = make_mesh(MeshConfig(), jax.devices()[:1]), recipe.models.student
    shapes = jax.eval_shape(lambda: initial_params(recipe))
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    teacher = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params["teacher"].items()}

    def cost(stage):
        state = Trainer(stage, recipe.models, mesh, shapes).abstract
        return step_cost(stage, 48, 3, state.trainable, state.frozen, student)

    distill, tune = recipe.stages
    patches, visual = 3 * 16, 3 * 4
    assert cost(distill) == 8 * ((3 * size["vision"] + teacher["vision"]) * patches + teacher["connector"] * visual)
    whole = size["vision"] * patches + size["connector"] * visual + size["decoder"] * 48
    assert cost(tune) == 8 * 3 * whole
    align = dataclasses.replace(tune, trainable=("connector/**",))
    assert cost(align) == 8 * (size["vision"] * patches + 3 * size["connector"] * visual + 2 * size["decoder"] * 48)
