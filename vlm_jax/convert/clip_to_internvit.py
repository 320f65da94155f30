"""CLIP's vision tower as the first weights of an InternViT.

The paper starts InternViT-300M from CLIP-ViT-L/14-336 with positions resized to 448 pixels. It does not say what became
of the three things that CLIP has and InternViT has not; this is our answer:

- CLIP's own pixel statistics: an affine change of the input, absorbed *exactly* into kernel and bias of the patch
  embedding (`renormalise`).
- The LayerNorm before the first layer, gamma * (u - mean(u)) / sigma(u) + beta of u, patch plus position. For the class
  token all of it is a constant: *exact*. For patches, taking the mean off and gamma are linear, and beta is a bias:
  *exact* too. What is left is 1 / sigma(u), one number per patch. It is replaced by one number for all patches: 1 over
  the median of sigma on calibration tiles. So every patch (less beta) keeps its direction, which is all that the first
  LayerNorm inside a layer looks at, and only its length is wrong, by sigma / median.
- quick-GELU becomes exact GELU, and layer scales of 1 are added. Nothing makes up for the first: on random towers of 8
  and 24 layers the last hidden states keep a cosine of more than 0.9999 to the original.

With random weights in the size of CLIP-ViT-L/14 at 448 pixels, the last hidden states of patches have a mean cosine of
0.986 (1/f noise) and 0.975 (photographs) to CLIP's, and of 0.903 and 0.906 if the LayerNorm is left out; the class
token's of 0.995 and 0.986, and 0.874 and 0.865. How near it is with trained weights has not been measured.

Tried and worse, in the cosine of the last hidden states to CLIP's on held-out noise and photographs: leaving the
LayerNorm out, a least-squares affine map of every channel, the same with a mean for every position, ridge regression
from pixels, and other numbers than the median (mean of 1 / sigma, least squares). Least squares follows the patches of
high contrast and shrinks all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.data.layouts.patches import patchify
from vlm_jax.errors import UserError
from vlm_jax.models.vision_transformer import IMAGENET_MEAN, IMAGENET_STD, VisionConfig, normalise

CALIBRATION_TILES = 16


def clip_to_internvit(
    params: Mapping[str, Any], vision: VisionConfig, tiles: np.ndarray | None = None, seed: int = 0
) -> tuple[dict[str, Any], VisionConfig]:
    """An InternViT that does nearly what a CLIP tower does. Resize positions first (`read_tower(folder, image_size)`).

    Args:
      params: {"vision": parameters} of the CLIP tower, NumPy arrays.
      vision: its config.
      tiles: uint8 [K, S, S, 3], pictures of the kind that is to come, at the tower's size; they decide one number.
        None takes `noise_tiles`.
      seed: of that noise.

    Returns:
      {"vision": parameters} in the dtypes they came in, and their config: without a norm before the first layer, with
      layer scale, exact GELU and ImageNet's pixel statistics. `norm_eps` and `drop_path` stay.

    Raises:
      UserError: the tower is not built as CLIP's are.
    """
    needed = {"class_token": True, "embedding_norm": True, "final_norm": False, "norm": "layer_norm"}
    wrong = [f"{name} is {getattr(vision, name)}" for name, value in needed.items() if getattr(vision, name) != value]
    if wrong:
        raise UserError(f"only a CLIP tower can become an InternViT in this way; of this one {', '.join(wrong)}")
    if tiles is None:
        tiles = noise_tiles(CALIBRATION_TILES, vision.image_size, seed)
    params, vision = renormalise(params, vision, IMAGENET_MEAN, IMAGENET_STD)
    tower, vision = _fold_embedding_norm(params["vision"], vision, tiles)
    tower.pop("pooling_norm", None)  # no hidden state passes it, and an InternViT has none
    if vision.layer_scale is None:
        ones = np.ones(vision.width, tower["class_embedding"].dtype)
        scales = {"attention_scale": ones, "mlp_scale": ones}
        tower["layers"] = {number: {**layer, **scales} for number, layer in tower["layers"].items()}
        vision = dataclasses.replace(vision, layer_scale=1.0)
    return {"vision": tower}, dataclasses.replace(vision, activation="gelu", pooling_norm=False)


def renormalise(
    params: Mapping[str, Any], vision: VisionConfig, mean: Sequence[float], std: Sequence[float]
) -> tuple[dict[str, Any], VisionConfig]:
    """The same function of the same images, for pixels normalised with another mean and standard deviation.

    Works for every tower; one without a bias of the patch embedding gets one.

    Args:
      params: {"vision": parameters}, NumPy arrays.
      vision: their config.
      mean, std: of the three channels, for pixels in 0..1.

    Returns:
      {"vision": parameters} in the dtypes they came in, and their config.
    """
    tower = dict(params["vision"])
    kernel = np.asarray(tower["patch_embedding"]["kernel"], np.float64)
    old_mean, old_std, new_mean, new_std = (
        np.tile(np.asarray(values, np.float64), len(kernel) // 3) for values in (vision.mean, vision.std, mean, std)
    )
    # (pixel - old_mean) / old_std of pixel = new * new_std + new_mean.
    bias = np.asarray(tower["patch_embedding"].get("bias", 0.0), np.float64) + (new_mean - old_mean) / old_std @ kernel
    tower["patch_embedding"] = _patch_embedding(kernel * (new_std / old_std)[:, None], bias, tower)
    config = dataclasses.replace(vision, mean=tuple(mean), std=tuple(std), patch_bias=True)
    return {"vision": tower}, config


def _fold_embedding_norm(
    tower: dict[str, Any], vision: VisionConfig, tiles: np.ndarray
) -> tuple[dict[str, Any], VisionConfig]:
    """The tower without its first LayerNorm (the module's docstring says how)."""
    norm = tower.pop("embedding_norm")
    gamma, beta = (np.asarray(norm[name], np.float64) for name in ("scale", "bias"))
    kernel, bias = (np.asarray(tower["patch_embedding"][name], np.float64) for name in ("kernel", "bias"))
    positions = np.asarray(tower["position_embedding"], np.float64)
    token = np.asarray(tower["class_embedding"], np.float64) + positions[0]

    kernel, bias, positions, token = (x - x.mean(axis=-1, keepdims=True) for x in (kernel, bias, positions, token))
    pixels = np.asarray(normalise(patchify(tiles, vision.patch_size), vision.mean, vision.std), np.float64)
    patches = pixels @ kernel + bias + positions[1:]
    factor = gamma / np.median(_length(patches, vision))

    kind = tower["class_embedding"].dtype
    tower["class_embedding"] = (gamma * token / _length(token, vision) + beta).astype(kind)
    positions[0] = 0  # the class token's is in the token
    tower["position_embedding"] = (positions * factor).astype(tower["position_embedding"].dtype)
    tower["patch_embedding"] = _patch_embedding(kernel * factor, bias * factor + beta, tower)
    return tower, dataclasses.replace(vision, embedding_norm=False)


def _length(centred: np.ndarray, vision: VisionConfig) -> np.ndarray:
    """What LayerNorm divides by."""
    return np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + vision.norm_eps)


def _patch_embedding(kernel: np.ndarray, bias: np.ndarray, tower: Mapping[str, Any]) -> dict[str, np.ndarray]:
    kind = tower["patch_embedding"]["kernel"].dtype
    return {"kernel": kernel.astype(kind), "bias": bias.astype(kind)}


def noise_tiles(count: int, side: int, seed: int) -> np.ndarray:
    """Pictures of 1/f noise, whose spectrum is that of photographs, of varying brightness, contrast and smoothness.

    Channels are mixed from one of lightness and two of colour that are a quarter and a tenth as strong.

    Returns:
      uint8 [count, side, side, 3].
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    mix = np.array([[1, 1, 1], [0.25, 0, -0.25], [0.1, -0.1, 0.1]])
    tiles = np.empty((count, side, side, 3), np.uint8)
    for i in range(count):
        phases = np.exp(2j * np.pi * rng.random((*frequency.shape, 3)))
        field = np.fft.irfft2(frequency[..., None] ** -rng.uniform(0.8, 1.4) * phases, s=(side, side), axes=(0, 1))
        picture = (field / field.std(axis=(0, 1))) @ mix
        tiles[i] = np.clip(rng.uniform(60, 200) + rng.uniform(15, 80) * picture, 0, 255).round()
    return tiles
