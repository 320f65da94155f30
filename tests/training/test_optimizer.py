import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import globs
from vlm_jax.sharding import MeshConfig, make_mesh, tree_shardings
from vlm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, merge, split_trainable

TREE = {
    "vision": {"layers": {"0": {"kernel": jnp.ones(2)}, "1": {"kernel": jnp.ones(2)}}},
    "decoder": {"bias": jnp.ones(2)},
}


def test_schedule_is_that_of_the_hf_trainer():
    config, steps = OptimizerConfig(learning_rate=4e-5, warmup_ratio=0.03), 90
    warmup = math.ceil(steps * 0.03)
    rates = jax.vmap(learning_rate(config, steps))(jnp.arange(steps))
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        want = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
        assert rates[step] == pytest.approx(4e-5 * want, abs=1e-11)


def test_split_is_ordered_and_takes_back():
    trained, frozen = split_trainable(TREE, ("vision/**", "!vision/layers/0/**"))
    assert set(trained["vision"]["layers"]) == {"1"}
    assert set(frozen) == {"vision", "decoder"}
    assert jax.tree.structure(merge(frozen, trained)) == jax.tree.structure(TREE)


def test_multiplier_scales_the_update_even_of_a_zero_gradient():
    config = OptimizerConfig(
        weight_decay=0.5,
        multipliers=(("vision/layers/0/**", 0.25),),
    )
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, TREE), optimizer.init(TREE), TREE)
    np.testing.assert_allclose(updates["vision"]["layers"]["1"]["kernel"], -0.5, rtol=1e-6)
    np.testing.assert_allclose(updates["vision"]["layers"]["0"]["kernel"], -0.125, rtol=1e-6)
    np.testing.assert_allclose(updates["decoder"]["bias"], 0.0)  # biases are not decayed


def test_muon_decays_what_adamw_decays():
    params = {
        "vision": {"layers": {"0": {"mlp": {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}}}},
        "decoder": {"embedding": jnp.ones((5, 4)), "norm": {"scale": jnp.ones(4)}},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerConfig(type=kind, weight_decay=0.1))
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        mlp, decoder = updates["vision"]["layers"]["0"]["mlp"]["up"], updates["decoder"]
        np.testing.assert_allclose(mlp["kernel"], -0.1, rtol=1e-6, err_msg=kind)
        np.testing.assert_allclose(decoder["embedding"], -0.1, rtol=1e-6, err_msg=kind)
        np.testing.assert_array_equal(mlp["bias"], 0.0, err_msg=kind)
        np.testing.assert_array_equal(decoder["norm"]["scale"], 0.0, err_msg=kind)


def test_muon_makes_updates_of_matrices_nearly_orthogonal():
    rng = np.random.default_rng(0)
    params = {"connector": {"up": {"kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}}}
    optimizer = make_optimizer(OptimizerConfig(type="muon", weight_decay=0.0))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    singular = np.linalg.svd(updates["connector"]["up"]["kernel"], compute_uv=False)
    # 0.2 * sqrt(max side) is the scale that matches AdamW's updates.
    assert singular.min() / (0.2 * 6**0.5) > 0.5
    assert singular.max() / (0.2 * 6**0.5) < 1.5


def muon_params(seed=0):
    """Matrices of one shape and of several, tall and wide, and of three axes."""
    rng = np.random.default_rng(seed)
    layer = {
        "mlp": {"up": (8, 12), "gate": (8, 12), "down": (12, 8)},
        "attention": {"query": (8, 2, 3), "out": (2, 3, 8)},
    }
    shapes = {"vision": {"layers": {"0": layer, "1": layer}}, "connector": {"up": (16, 8)}}
    return jax.tree.map(
        lambda shape: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)},
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def assert_polar(updates, directions):
    """The updates are the polar factors, computed by SVD one kernel at a time, of these directions, turned about."""
    for path, update in globs.flatten(updates).items():
        inputs = 2 if "/out/" in path else 1
        direction = np.asarray(globs.flatten(directions)[path])
        matrix = direction.reshape(int(np.prod(direction.shape[:inputs])), -1)
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        want = -0.2 * max(matrix.shape) ** 0.5 * left @ right
        got = np.asarray(update).reshape(matrix.shape)
        # Newton-Schulz leaves singular values between about 0.7 and 1.2: the directions are right, the sizes nearly.
        cosine = np.sum(got * want) / np.linalg.norm(got) / np.linalg.norm(want)
        assert cosine > 0.97, path
        assert 0.7 < np.linalg.norm(got) / np.linalg.norm(want) < 1.2, path


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_muon_takes_each_kernel_as_one_matrix_with_nesterov_momentum(momentum):
    params = muon_params()
    first, second = muon_params(1), muon_params(2)
    optimizer = make_optimizer(OptimizerConfig(type="muon", weight_decay=0.0, momentum=momentum, clip_norm=0.0))
    _, state = optimizer.update(first, optimizer.init(params), params)
    updates, _ = optimizer.update(second, state, params)
    ahead = jax.tree.map(lambda one, two: two + momentum * (two + momentum * one), first, second)
    assert_polar(updates, ahead)


@pytest.mark.parametrize("config", [MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2), MeshConfig(fsdp=2, tensor=2)])
def test_on_a_mesh_every_device_orthogonalises_its_share(config):
    params = muon_params()
    optimizer = make_optimizer(OptimizerConfig(type="muon"))
    state = optimizer.init(params)
    one = jax.jit(optimizer.update)(params, state, params)[0]
    mesh = make_mesh(config, jax.devices()[:4])
    with jax.set_mesh(mesh):
        arguments = (params, state, params)
        arguments = jax.device_put(arguments, tree_shardings(arguments, mesh))
        compiled = jax.jit(optimizer.update).lower(*arguments).compile()
        shared = compiled(*arguments)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), shared, one)
    # 6 kernels of 8x12 (two of them down, turned) are 8 with padding, 2 a device; so are the products of each.
    text = compiled.as_text()
    assert "f32[2,8,8]" in text
    assert "f32[8,8,8]" not in text
    assert "f32[6,8,8]" not in text


@pytest.mark.torch
def test_adamw_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(5, 3, 4)).astype(np.float32)
    config = OptimizerConfig(weight_decay=0.1, clip_norm=1.0)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.asarray(start)}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for grad in grads:
        updates, state = optimizer.update({"kernel": jnp.asarray(grad)}, state, params)
        params = jax.tree.map(lambda p, u: p + 0.01 * u, params, updates)
        weight.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        reference.step()
    np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), atol=1e-6)
