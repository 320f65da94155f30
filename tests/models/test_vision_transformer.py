"""Sizes and switches of the vision transformer; `tests/convert/test_towers.py` compares its numbers with others'."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.convert.towers import tower_shapes
from vlm_jax.errors import UserError
from vlm_jax.models.layers import ACTIVATIONS, Compute
from vlm_jax.models.positions import resize_positions
from vlm_jax.models.sizes import TOWERS
from vlm_jax.models.vision_transformer import VisionConfig, VisionTransformer, init_tower, normalise, waves
from vlm_jax.models.vlm import VLM

CLIP_L, SIGLIP = (VisionConfig(**TOWERS[name]) for name in ("clip_l14_336", "siglip_so400m_384"))


def count(vision):
    return sum(int(np.prod(shape)) for shape in tower_shapes(vision).values())


@pytest.mark.parametrize(("depth", "image_size", "billions"), [(45, 448, 5.54), (48, 224, 5.90)])
def test_internvit_6b(depth, image_size, billions):
    vision = VisionConfig(
        image_size=image_size, width=3200, depth=depth, heads=25, mlp_width=12800, norm="rms_norm", qkv_bias=False,
        qk_norm="full", layer_scale=0.1,
    )  # fmt: skip
    width, hidden = 3200, 12800
    attention = 3 * width * width + 2 * width + width * width + width  # q, k, v; the norms of q and k; out
    mlp = width * hidden + hidden + hidden * width + width
    layer = attention + mlp + 2 * width + 2 * width  # and two norms, two scales
    patches = (image_size // 14) ** 2
    embeddings = 14 * 14 * 3 * width + width + width + (1 + patches) * width
    assert count(vision) == depth * layer + embeddings
    assert count(vision) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.torch
def test_activations():
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 400, dtype=np.float32)
    for ours, theirs in {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}.items():
        expected = ACT2FN[theirs](torch.tensor(x)).numpy()
        np.testing.assert_allclose(ACTIVATIONS[ours](x), expected, rtol=0, atol=2e-6)
    assert 0.02 < np.abs(ACTIVATIONS["quick_gelu"](x) - ACTIVATIONS["gelu"](x)).max() < 0.021


def test_pixels_are_normalised_with_the_configs_statistics():
    patches = np.arange(12, dtype=np.uint8).reshape(1, 1, 12)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (np.arange(12).reshape(4, 3) / 255 - mean) / std
    np.testing.assert_allclose(normalise(patches, mean, std).reshape(4, 3), expected, rtol=1e-6)
    vision = dataclasses.replace(tiny.system().model.vision, depth=1)
    params = tiny.params()["vision"]
    tiles = np.random.default_rng(0).integers(0, 256, (1, 16, 192), dtype=np.uint8)
    outputs = [
        VisionTransformer(dataclasses.replace(vision, **fields), Compute()).apply({"params": params}, tiles)[0]
        for fields in ({}, {"mean": mean}, {"std": std})
    ]
    assert min(np.abs(outputs[0] - other).max() for other in outputs[1:]) > 1e-3


@pytest.mark.parametrize("vision", [CLIP_L, SIGLIP])
def test_scan_and_drop_path(vision):
    vision = dataclasses.replace(
        vision, image_size=20, patch_size=8, width=24, depth=2, heads=3, mlp_width=40, drop_path=0.5
    )
    assert (vision.grid, vision.patches, vision.tokens) == (2, 4, 4 + vision.first_patch)
    rng = np.random.default_rng(0)
    shapes = tower_shapes(vision)
    tree = globs.unflatten({path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()})
    tiles = rng.integers(0, 256, (3, 4, 192), dtype=np.uint8)

    def run(compute, key=None):
        return VisionTransformer(vision, compute).apply({"params": tree["vision"]}, tiles, drop_key=key)[0]

    plain = run(Compute())
    assert plain.shape == (3, vision.tokens, 24)
    np.testing.assert_allclose(run(Compute(scan_layers=True)), plain, rtol=1e-4, atol=1e-4)
    assert np.abs(run(Compute(), jax.random.key(1)) - plain).max() > 0.1


def small(name, **fields):
    """A released kind of tower with three small layers and random parameters, and pictures of 4 x 4 patches for it."""
    sizes = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 3, "mlp_width": 40}
    vision = VisionConfig(**{**TOWERS[name], **sizes, **fields})
    rng = np.random.default_rng(0)
    shapes = tower_shapes(vision)
    tree = globs.unflatten({path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()})
    return vision, tree["vision"], rng.integers(0, 256, (2, 16, 192), dtype=np.uint8)


@pytest.mark.parametrize("name", ["clip_l14_224", "siglip_so400m_384"])
def test_layers_behind_the_feature_layer_are_held_and_not_run(name):
    vision, params, tiles = small(name, drop_path=0.5)

    @partial(jax.jit, static_argnums=0)
    def run(layer, params=params, key=None):
        tower = VisionTransformer(dataclasses.replace(vision, feature_layer=layer), Compute(scan_layers=layer == 2))
        return tower.apply({"params": params}, tiles, drop_key=key, capture=layer < 2 and 2)

    states, captured = {}, {}
    for layer in (-1, -2, -3, -4):
        states[layer], captured[layer] = run(layer)
    equal = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-3)  # of states up to about 200
    equal(states[-2], captured[-1][0])
    np.testing.assert_array_equal(captured[-2][-1], states[-2])  # of those that are run
    equal(captured[-2][0], states[-3])
    assert len(captured[-4]) == 0
    equal(run(2)[0], states[-2])  # layer by layer in a scan
    assert np.abs(states[-2] - states[-1]).max() > 0.1
    assert np.array_equal(captured[-1][-1], states[-1]) == vision.pooling_norm  # else `final_norm` has been passed

    config = dataclasses.replace(vision, feature_layer=-2)
    assert tower_shapes(config) == tower_shapes(vision)
    assert config.unused == ("layers/2/**", f"{vision.last_norm}/*")
    assert vision.unused == (("pooling_norm/*",) if vision.pooling_norm else ())
    flat = globs.flatten(params)
    idle = {path for path in flat if any(globs.matches(path, glob) for glob in config.unused)}
    assert idle
    gradient = jax.grad(lambda p: jnp.sum(run(-2, p)[0] ** 2))(params)
    zero = {path for path, leaf in globs.flatten(gradient).items() if not leaf.any()}
    assert zero == idle

    # A layer keeps its rate of drop path: what falls out of the tower's front does not depend on its end.
    key = jax.random.key(1)
    equal(run(-2, key=key)[0], run(-1, key=key)[1][0])
    assert np.abs(run(-2, key=key)[0] - states[-2]).max() > 0.1


def test_another_grid_than_the_tables():
    vision, params, tiles = small("clip_l14_224")
    tower = VisionTransformer(vision, Compute())
    plain = tower.apply({"params": params}, tiles)[0]
    np.testing.assert_array_equal(tower.apply({"params": params}, tiles, grid=(4, 4))[0], plain)
    wide = jax.jit(lambda p: tower.apply({"params": p}, tiles, grid=(2, 8))[0])(params)
    assert np.abs(wide - plain).max() > 0.1
    with pytest.raises(ValueError, match="16 patches of a tile are not a grid of 3 x 5"):
        tower.apply({"params": params}, tiles, grid=(3, 5))
    given = dict(params)
    given["position_embedding"] = resize_positions(params["position_embedding"], 4, (2, 8), class_token=True)
    fixed = np.asarray(tower.apply({"params": given}, tiles)[0])
    np.testing.assert_allclose(wide, fixed, rtol=1e-4, atol=1e-3)  # of numbers around 100


def test_a_model_without_class_token_hands_on_every_patch():
    model = tiny.system().model
    vision = dataclasses.replace(model.vision, class_token=False)
    config = dataclasses.replace(model, vision=vision)
    shapes = parameter_shapes(config)
    assert shapes["vision/position_embedding"] == (16, 24)
    assert "vision/class_embedding" not in shapes
    params = {**tiny.params(), "vision": dict(tiny.params()["vision"])}
    del params["vision"]["class_embedding"]
    params["vision"]["position_embedding"] = params["vision"]["position_embedding"][1:]
    patches = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 192), dtype=np.uint8)
    features, _ = VisionTransformer(vision, Compute()).apply({"params": params["vision"]}, patches[0])
    assert features.shape == (2, 16, 24)
    network = VLM(config)
    visual = network.apply({"params": params}, patches, method="encode")
    expected = network.apply({"params": params}, features, method=lambda model, x: model.connector(x))
    assert visual.shape == (1, 8, 32)
    np.testing.assert_allclose(visual[0], expected.reshape(8, 32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 500}, r"vision\.patch_size: must lie in 1\.\.image_size \(448\), got 500"),
        ({"std": (0.1, 0.0, 0.1)}, r"vision\.std: must be positive"),
        ({"position_waves": float("nan")}, r"vision\.position_waves: must be finite and at least 0, got nan"),
        ({"feature_layer": -26}, r"vision\.feature_layer: must lie in -25\.\.24 \(24 layers\), got -26"),
        ({"final_norm": True, "pooling_norm": True}, r"vision\.pooling_norm: it stands in the place of final_norm"),
        ({"heads": 15}, r"vision\.heads: 15 heads do not divide a width of 1024"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(UserError, match=message):
        VisionConfig(**fields)


def test_waves_tell_every_place_of_a_tile_apart():
    grid, width = 8, 66
    places = np.asarray(waves(grid, width)).reshape(grid, grid, width)
    half = width // 4 * 2
    np.testing.assert_array_equal(places[:, :, :half], np.broadcast_to(places[:, :1, :half], (grid, grid, half)))
    np.testing.assert_array_equal(places[0, :, half : 2 * half], places[:, 0, :half])
    assert not places[:, :, 2 * half :].any()
    flat = places.reshape(grid * grid, width)
    products = flat @ flat.T / (width // 4 * 2)
    np.testing.assert_allclose(np.diag(products), 1.0, rtol=1e-5)
    assert (products - np.eye(grid * grid)).max() < 0.95

    config = VisionConfig(image_size=16, patch_size=4, width=16, depth=1, heads=2, mlp_width=16)
    plain = init_tower(config, jax.random.key(0))["position_embedding"]
    waved = init_tower(dataclasses.replace(config, position_waves=0.3), jax.random.key(0))["position_embedding"]
    np.testing.assert_array_equal(plain[0], waved[0])  # of the class token
    np.testing.assert_allclose(waved[1:] - plain[1:], 0.3 * waves(4, 16), atol=1e-6)
