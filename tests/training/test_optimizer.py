import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert import internvl_hf, table
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.errors import UserError
from vlm_jax.sharding import MeshConfig, make_mesh, tree_shardings
from vlm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, merge, split_trainable

TREE = {
    "vision": {"layers": {"0": {"kernel": jnp.ones(2)}, "1": {"kernel": jnp.ones(2)}}},
    "decoder": {"bias": jnp.ones(2)},
}


@pytest.mark.torch
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(
    ("steps", "ratio", "warmup_steps"),
    [(90, 0.03, 0), (90, 0.5, 7), (33, 0.0, 0), (1, 0.03, 0), (3, 1.0, 0), (22_000, 0.03, 0), (100_000, 0.03, 100)],
)
def test_schedules_are_those_of_transformers(schedule, steps, ratio, warmup_steps):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peak = 4e-5
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    # As `TrainingArguments.get_warmup_steps` of transformers 4.37: a number of steps wins over a share.
    warmup = warmup_steps if warmup_steps > 0 else math.ceil(steps * ratio)
    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    scale = make(reference, warmup, *([steps] if schedule != "constant" else [])).lr_lambdas[0]
    numbers = np.unique(
        np.r_[0:40, np.linspace(0, steps - 1, 200, dtype=int), warmup - 1 : warmup + 2, steps - 40 : steps]
    )
    numbers = numbers[(numbers >= 0) & (numbers < steps)]
    config = OptimizerConfig(learning_rate=peak, schedule=schedule, warmup_ratio=ratio, warmup_steps=warmup_steps)
    rates = jax.jit(jax.vmap(learning_rate(config, steps)))(jnp.asarray(numbers, jnp.int32))
    np.testing.assert_allclose(rates, [peak * scale(int(step)) for step in numbers], rtol=1e-6, atol=0)


def test_schedules_end_at_their_share_of_the_rate():
    for schedule, last in [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)]:
        rate = learning_rate(OptimizerConfig(learning_rate=2.0, schedule=schedule, final_ratio=0.1), 10)
        assert rate(10) == pytest.approx(2.0 * last)
        assert rate(1) == pytest.approx(2.0)
    with pytest.raises(UserError, match="warmup_steps"):
        OptimizerConfig(warmup_steps=-1)


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
@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])  # the norm is never, sometimes and always clipped
def test_adamw_equals_torch(scale):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    shapes = {"up/kernel": (7, 5), "up/bias": (5,), "norm/scale": (5,), "down/kernel": (5, 2), "down/bias": (2,)}
    start = {path: (1 + rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}
    grads = [
        {path: (scale * rng.normal(size=shape) / 8).astype(np.float32) for path, shape in shapes.items()}
        for _ in range(10)
    ]
    config = OptimizerConfig(learning_rate=0.03, warmup_steps=3, weight_decay=0.1)
    optimizer, rate = make_optimizer(config), learning_rate(config, 10)
    params = globs.unflatten({path: jnp.asarray(value) for path, value in start.items()})
    state = optimizer.init(params)

    weights = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    decayed = [path for path in shapes if path.endswith("kernel")]
    groups = [
        {"params": [weights[path] for path in decayed], "weight_decay": 0.1},
        {"params": [weights[path] for path in shapes if path not in decayed], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.03, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_cosine_schedule_with_warmup(reference, 3, 10)
    for step, grad in enumerate(grads):
        updates, state = optimizer.update(globs.unflatten({p: jnp.asarray(g) for p, g in grad.items()}), state, params)
        params = jax.tree.map(lambda p, u, step=step: p + rate(step) * u, params, updates)
        for path, weight in weights.items():
            weight.grad = torch.tensor(grad[path])
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        reference.step()
        schedule.step()
    for path, value in globs.flatten(params).items():
        want = weights[path].detach().numpy()
        assert np.abs(want - start[path]).min() > 1e-3  # every value has moved
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.torch
def test_decay_of_the_hf_trainer_can_be_said():
    torch = pytest.importorskip("torch")
    from transformers.trainer_pt_utils import get_parameter_names

    model = tiny.torch_model()
    # The rule of HF's Trainer 4.37, which InternVL trains with: neither biases nor what an nn.LayerNorm holds.
    decayed = {name for name in get_parameter_names(model, [torch.nn.LayerNorm]) if "bias" not in name}
    shapes = parameter_shapes(tiny.system().model)
    stored = table.plan(internvl_hf.rules({"text_config": {"model_type": "qwen2"}}), shapes)
    names = {path: key for key, tensor in stored.items() for path in tensor.paths}
    expected = {path: names[path] in {internvl_hf.rename(name, {}) for name in decayed} for path in shapes}

    config = OptimizerConfig(weight_decay=0.5, no_decay=("**/bias", "vision/**/scale", "connector/**/scale"))
    optimizer = make_optimizer(config)
    params = globs.unflatten({path: jnp.ones(1) for path in shapes})
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {path: bool(update.any()) for path, update in globs.flatten(updates).items()} == expected
    spared = sorted(path for path, decays in expected.items() if not decays and not path.endswith("/bias"))
    assert "vision/layers/0/mlp_norm/scale" in spared
    assert not [
        path for path in spared if path.startswith("decoder/") or "embedding" in path or "attention_scale" in path
    ]
