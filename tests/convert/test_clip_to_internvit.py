import dataclasses

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vlm_jax import globs
from vlm_jax.convert.clip_to_internvit import clip_to_internvit, noise_tiles, renormalise
from vlm_jax.convert.internvit import not_internvit
from vlm_jax.convert.towers import tower_shapes
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    VisionConfig,
    VisionTransformer,
)

CLIP = VisionConfig(
    image_size=56, patch_size=8, width=64, depth=4, heads=4, mlp_width=128, norm_eps=1e-5, activation="quick_gelu",
    patch_bias=False, embedding_norm=True, pooling_norm=True, layer_scale=None, drop_path=0.0, mean=CLIP_MEAN,
    std=CLIP_STD,
)  # fmt: skip


def random_params(vision, seed=0):
    """Kernels of variance 1 / fan-in or more; biases, norms and positions that matter."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in tower_shapes(vision).items():
        values = rng.standard_normal(shape)
        if path.endswith("kernel"):
            values *= (64 if "attention/out" in path else shape[0]) ** -0.5
        elif path.endswith("scale"):
            values = 1 + 0.3 * values
        else:
            values *= 0.3
        flat[path] = values.astype(np.float32)
    return globs.unflatten(flat)


@pytest.fixture(scope="module")
def params():
    return random_params(CLIP)


def photographs(side):
    names = ("astronaut", "chelsea", "coffee", "rocket")
    pictures = (Image.fromarray(getattr(data, name)()).resize((side, side), Image.Resampling.BICUBIC) for name in names)
    return np.stack([np.asarray(picture) for picture in pictures])


def run(params, vision, tiles):
    network = VisionTransformer(vision, Compute())
    return np.asarray(network.apply({"params": params["vision"]}, patchify(tiles, vision.patch_size))[0])


def cosine(a, b):
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("patch_bias", [False, True])
def test_other_pixel_statistics_give_the_same_numbers(patch_bias):
    vision = dataclasses.replace(CLIP, patch_bias=patch_bias, depth=1)
    given = random_params(vision)
    again, config = renormalise(given, vision, IMAGENET_MEAN, IMAGENET_STD)
    assert (config.mean, config.std, config.patch_bias) == (IMAGENET_MEAN, IMAGENET_STD, True)
    tiles = noise_tiles(2, 56, 5)
    expected = run(given, vision, tiles)
    np.testing.assert_allclose(run(again, config, tiles), expected, rtol=0, atol=2e-5)
    changed = dataclasses.replace(config, mean=CLIP_MEAN)
    assert np.abs(run(again, changed, tiles) - expected).max() > 1e-2


def test_the_class_token_and_equal_patches_are_exact(params):
    """Where sigma is the same for all patches there is nothing to approximate: a tower without layers shows it."""
    vision = dataclasses.replace(CLIP, depth=0)
    shallow = {"vision": {**params["vision"], "layers": {}}}
    photos = photographs(56)
    folded, config = clip_to_internvit(shallow, vision)
    np.testing.assert_allclose(run(folded, config, photos)[:, 0], run(shallow, vision, photos)[:, 0], rtol=0, atol=2e-5)

    def flat(level):
        return np.full((1, 56, 56, 3), level, np.uint8)

    shallow["vision"] = dict(shallow["vision"])
    row = shallow["vision"]["position_embedding"][:1]
    shallow["vision"]["position_embedding"] = np.concatenate([row, np.repeat(2 * row, 49, axis=0)])
    folded, config = clip_to_internvit(shallow, vision, flat(90))
    np.testing.assert_allclose(run(folded, config, flat(90)), run(shallow, vision, flat(90)), rtol=0, atol=2e-5)
    # Elsewhere a patch, less beta, keeps its direction, and only its length differs.
    beta = shallow["vision"]["embedding_norm"]["bias"]
    expected, found = (run(p, v, photos)[:, 1:] - beta for p, v in ((shallow, vision), (folded, config)))
    assert cosine(found, expected).min() > 1 - 1e-5
    assert np.abs(np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1) - 1).max() > 0.1


@pytest.mark.parametrize("kind", ["noise", "photographs"])
def test_it_stays_near_clip(params, kind):
    tiles = noise_tiles(4, 56, seed=9) if kind == "noise" else photographs(56)
    folded, vision = clip_to_internvit(params, CLIP)
    assert not_internvit(vision) == []
    assert (vision.activation, vision.layer_scale, vision.norm_eps) == ("gelu", 1.0, 1e-5)
    shapes = {path: leaf.shape for path, leaf in globs.flatten(folded).items()}
    assert shapes == tower_shapes(vision)
    assert {leaf.dtype for leaf in globs.flatten(folded).values()} == {np.dtype(np.float32)}
    expected = run(params, CLIP, tiles)
    found = cosine(run(folded, vision, tiles), expected)

    dropped, plain = renormalise(params, CLIP, IMAGENET_MEAN, IMAGENET_STD)
    del dropped["vision"]["embedding_norm"]
    plain = dataclasses.replace(plain, embedding_norm=False, activation="gelu")
    without = cosine(run(dropped, plain, tiles), expected)
    assert found[:, 1:].mean() > 0.96
    assert 1 - found[:, 1:].mean() < 0.4 * (1 - without[:, 1:].mean())
    assert 1 - found[:, 0].mean() < 0.4 * (1 - without[:, 0].mean())


def test_nothing_that_was_given_changes(params):
    before = {path: leaf.copy() for path, leaf in globs.flatten(params).items()}
    clip_to_internvit(params, CLIP, photographs(56))
    after = globs.flatten(params)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[path], before[path]) for path in before)


def test_noise_depends_on_the_seed_alone():
    tiles = noise_tiles(3, 40, 1)
    assert (tiles.shape, tiles.dtype) == ((3, 40, 40, 3), np.uint8)
    np.testing.assert_array_equal(tiles, noise_tiles(3, 40, 1))
    assert np.abs(tiles.astype(int) - noise_tiles(3, 40, 2)).mean() > 10
    # Neighbours are alike, as in photographs; without it this would be about 1.1.
    values = tiles.astype(float)
    assert np.abs(np.diff(values, axis=1)).mean() < 0.75 * values.std(axis=(1, 2)).mean()


def test_only_a_clip_tower():
    siglip = dataclasses.replace(CLIP, class_token=False, embedding_norm=False, final_norm=True, pooling_norm=False)
    with pytest.raises(UserError, match=r"class_token is False, embedding_norm is False, final_norm is True$"):
        clip_to_internvit(random_params(siglip), siglip)
