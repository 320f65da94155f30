import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.helpers import noise_batch
from vlm_jax import globs
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Compute
from vlm_jax.sharding import MeshConfig, make_mesh
from vlm_jax.training.optimizer import OptimizerConfig
from vlm_jax.training.step import Trainer

KEY = jax.random.key(7)


def trainer_on(recipe, stage, mesh_config, params, count):
    mesh = make_mesh(mesh_config, jax.devices()[:count])
    return Trainer(stage, recipe.models, mesh, params)


def run_steps(trainer, params, steps=2):
    state = trainer.init(params)
    losses = []
    with jax.set_mesh(trainer.mesh):
        for i in range(steps):
            batch = jax.device_put(noise_batch(seed=i), jax.NamedSharding(trainer.mesh, jax.P(("data", "fsdp"))))
            state, metrics = trainer.step(state, batch, KEY)
            losses.append(float(metrics["loss"]))
    return state, losses


def moments_of(state):
    """The first moment: after one step it is the gradient, scaled."""
    return optax.tree_utils.tree_get(state.optimizer, "mu")


@pytest.fixture(scope="module")
def single(recipe, params):
    return {s.name: run_steps(trainer_on(recipe, s, MeshConfig(), params, 1), params) for s in recipe.stages}


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=4, tensor=2)])
def test_eight_devices_equal_one(recipe, params, single, stage, mesh):
    stage = recipe.stages[stage]
    trainer = trainer_on(recipe, stage, mesh, params, 8)
    state, losses = run_steps(trainer, params)
    want, want_losses = single[stage.name]
    np.testing.assert_allclose(losses, want_losses, atol=1e-5)
    moments = (globs.flatten(moments_of(s)) for s in (state, want))
    for (path, got), expected in zip(next(moments).items(), next(moments).values(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=path)


def test_everything_is_really_spread(recipe, params):
    trainer = trainer_on(recipe, recipe.stages[1], MeshConfig(data=2, fsdp=2, tensor=2), params, 8)
    state = trainer.init(params)
    flat = globs.flatten(state.trainable)
    spread = {path for path, leaf in flat.items() if leaf.addressable_shards[0].data.size < leaf.size}
    kernels = {path for path in flat if path.endswith(("kernel", "decoder/embedding"))}
    assert kernels <= spread, kernels - spread
    moments = globs.flatten(moments_of(state))
    assert {p for p, leaf in moments.items() if leaf.addressable_shards[0].data.size < leaf.size} == spread
    total = sum(leaf.size for leaf in flat.values())
    shares = {path: leaf.size / leaf.addressable_shards[0].data.size for path, leaf in flat.items()}
    assert all(share == 4 for path, share in shares.items() if "/mlp/" in path and path.endswith("kernel")), shares
    # Half of all is the embedding and the head, whose rows do not divide by the tensor axis: they are split in two.
    assert sum(leaf.addressable_shards[0].data.size for leaf in flat.values()) < 0.41 * total

    with jax.set_mesh(trainer.mesh):
        text = trainer.lower(noise_batch(), KEY).as_text()
    # One for each named place of every layer: 3 per vision layer (q, k, v), its MLP and its output, likewise in the
    # decoder, and each again in the backward pass.
    layers = recipe.system.model.vision.depth + recipe.system.model.decoder.depth
    assert text.count("sharding_constraint") >= 5 * layers


def test_no_mesh_no_constraints(recipe, params):
    trainer = trainer_on(recipe, recipe.stages[1], MeshConfig(), params, 1)
    with jax.set_mesh(trainer.mesh):
        assert trainer.lower(noise_batch(), KEY).as_text().count("sharding_constraint") == 0


def test_frozen_parameters_stay_bit_equal_and_have_no_optimizer_state(recipe, params):
    stage = dataclasses.replace(recipe.stages[1], trainable=("connector/**", "decoder/layers/1/**"))
    state, _ = run_steps(trainer_on(recipe, stage, MeshConfig(), params, 1), params)
    flat, start = globs.flatten(state.frozen), globs.flatten(params)
    assert flat
    for path, leaf in flat.items():
        np.testing.assert_array_equal(leaf, start[path], err_msg=path)
    moved = globs.flatten(state.trainable)
    assert all(np.any(np.asarray(leaf) != np.asarray(start[path])) for path, leaf in moved.items() if "kernel" in path)
    assert set(globs.flatten(moments_of(state))) == set(moved)
    assert all(path.startswith(("connector/", "decoder/layers/1/")) for path in moved)


def test_what_no_forward_pass_reads_is_not_moved(recipe, params):
    """Weight decay would: without a gradient, AdamW still pulls a parameter to zero."""
    vision = dataclasses.replace(recipe.system.model.vision, feature_layer=-2, pooling_norm=True)
    models = dataclasses.replace(recipe.models, student=dataclasses.replace(recipe.models.student, vision=vision))
    norm = {"scale": jnp.full(vision.width, 1.5), "bias": jnp.full(vision.width, 0.5)}
    params = {**params, "vision": {**params["vision"], "pooling_norm": norm}}
    optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0.5, no_decay=(), warmup_ratio=0.0)
    stage = dataclasses.replace(recipe.stages[1], trainable=("**",), optimizer=optimizer)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state, _ = run_steps(Trainer(stage, models, mesh, params), params, 1)
    start, moved, still = (globs.flatten(tree) for tree in (params, state.trainable, state.frozen))
    unused = {path for path in start if path.startswith(("vision/layers/1/", "vision/pooling_norm/"))}
    assert len(unused) == 20
    assert unused == still.keys()
    for path in unused:
        np.testing.assert_array_equal(still[path], start[path], err_msg=path)
    parts = ("vision/", "connector/", "decoder/")
    assert moved.keys() == {path for path in start.keys() - unused if path.startswith(parts)}
    kernels = {path for path in moved if path.endswith("kernel")}
    assert all(np.any(np.asarray(moved[path]) != np.asarray(start[path])) for path in kernels)

    idle = dataclasses.replace(stage, trainable=("connector/**", "vision/layers/1/**"))
    with pytest.raises(UserError, match=r"no parameter matches vision/layers/1/\*\*"):
        Trainer(idle, models, mesh, params)


def test_accumulation_is_one_global_mean(recipe, params, single):
    stage = dataclasses.replace(recipe.stages[1], accumulation=4)
    no_drop = dataclasses.replace(recipe.system.model.vision, drop_path=0.0)
    student = dataclasses.replace(recipe.models.student, vision=no_drop)
    models = dataclasses.replace(recipe.models, student=student)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    results = [run_steps(Trainer(s, models, mesh, params), params, 1) for s in (recipe.stages[1], stage)]
    (one, one_loss), (four, four_loss) = results
    np.testing.assert_allclose(one_loss, four_loss, atol=1e-5)
    for a, b in zip(jax.tree.leaves(moments_of(one)), jax.tree.leaves(moments_of(four)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "compute", [Compute(scan_layers=True), Compute(remat="full"), Compute(scan_layers=True, remat="dots")]
)
def test_scan_and_remat_change_nothing(recipe, params, single, compute):
    models = dataclasses.replace(recipe.models, compute=compute)
    stage = recipe.stages[0]  # distillation: captures the last layers as well
    _, losses = run_steps(Trainer(stage, models, make_mesh(MeshConfig(), jax.devices()[:1]), params), params)
    np.testing.assert_allclose(losses, single[stage.name][1], atol=1e-5)


def test_bfloat16_keeps_float32_parameters(recipe, params):
    models = dataclasses.replace(recipe.models, compute=Compute(dtype="bfloat16"))
    stage = dataclasses.replace(recipe.stages[1], trainable=("connector/**",))
    state, losses = run_steps(Trainer(stage, models, make_mesh(MeshConfig(), jax.devices()[:1]), params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert np.isfinite(losses).all()


def test_stages_that_differ_in_schedule_share_one_compilation(recipe, params):
    stage = recipe.stages[1]
    slower = dataclasses.replace(stage, name="slower", steps=99, optimizer=OptimizerConfig(learning_rate=1e-3))
    one, other = (trainer_on(recipe, s, MeshConfig(), params, 1) for s in (stage, slower))
    assert one._run is other._run
    assert float(one.rate(2)) != float(other.rate(2))
    narrower = dataclasses.replace(stage, trainable=("connector/**",))
    assert trainer_on(recipe, narrower, MeshConfig(), params, 1)._run is not one._run


def test_globs_that_match_nothing_are_an_error(recipe, params):
    stage = dataclasses.replace(recipe.stages[1], trainable=("nothing/**",))
    with pytest.raises(UserError, match=r"tune.*nothing"):
        Trainer(stage, recipe.models, make_mesh(MeshConfig(), jax.devices()[:1]), params)
