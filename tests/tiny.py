"""A model of a few thousand parameters, and the same thing in `transformers`, for tests that compare the two."""

import functools
import io

import numpy as np
from PIL import Image

from vlm_jax import globs
from vlm_jax.config import build
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.convert.lazy import LazyArray
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.patches import unpatchify
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.inference.model import Model
from vlm_jax.models.vision_transformer import IMAGENET_MEAN, IMAGENET_STD
from vlm_jax.system import System

BRIEF = Turn("system", "Be brief.")  # the templates' own text is long
TEXTS = ["system user assistant What is the total? The total is 128.50. Which photograph is brighter, 1 or 2?"] * 4


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 330)


def system_fields() -> dict:
    """32-px tiles of 8-px patches (4 tokens a tile); more heads than KV heads; a head_dim that is not width / heads."""
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "mlp_width": 40}
    decoder = {
        "vocab_size": 337,
        "width": 32,
        "depth": 2,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 48,
        "rope_theta": 1e4,
        "max_tokens": 256,
    }
    return {
        "model": {"vision": vision, "connector": {}, "decoder": decoder},
        "layout": {"tile_size": 32, "max_tiles": 4},
    }


@functools.cache
def system() -> System:
    return build(System, system_fields())


def perturbed(tree, seed: int):
    """Parameters in which nothing is 0 or 1 any more: biases, norms and layer scales that a wrong table might swap."""
    rng = np.random.default_rng(seed)
    flat = globs.flatten(tree)
    return globs.unflatten(
        {p: (np.asarray(x) + 0.1 * rng.standard_normal(x.shape)).astype(np.float32) for p, x in flat.items()}
    )


@functools.cache
def params():
    shapes = parameter_shapes(system().model)
    rng = np.random.default_rng(0)
    # Kernels of variance 1 / fan-in or more; nothing is compiled for it.
    fresh = {p: np.ones(s) if len(s) == 1 else rng.standard_normal(s) * s[0] ** -0.5 for p, s in shapes.items()}
    fresh["decoder/embedding"] *= 10  # large enough that what comes next depends on the last token
    return perturbed(globs.unflatten(fresh), seed=1)


@functools.cache
def model() -> Model:
    return Model(system(), params(), tokenizer())


def lazy(arrays: dict) -> dict:
    """{name: array} as if they lay in files."""
    return {name: LazyArray(functools.partial(np.asarray, x), x.shape, x.dtype) for name, x in arrays.items()}


def png(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@functools.cache
def conversations() -> tuple[Conversation, ...]:
    """Ragged rows: two images with 3 and 1 tiles, none, one with 4 tiles and a thumbnail, and a second turn."""
    two = Conversation(
        (
            BRIEF,
            Turn("user", "Image-1: <image>\nImage-2: <image>\nWhich is brighter?"),
        ),
        (png(64, 32, 1), png(30, 31, 2)),
        "two",
    )
    text = Conversation((Turn("user", "What is the total?"),), (), "text")
    large = Conversation(
        (BRIEF, Turn("user", "<image>\nTotal?"), Turn("assistant", "128."), Turn("user", "Which is it, 1 or 2?")),
        (png(70, 68, 3),),
        "large",
    )
    return two, text, large


def torch_inputs(batch):
    """What `transformers` wants instead of a `Batch`: ids, attention mask, and the normalised tiles of all rows."""
    import torch

    tokens, used = np.asarray(batch.tokens), np.asarray(batch.tile_segment) > 0
    grid, side = batch.tile_grid[used][0], round((batch.patches.shape[-1] / 3) ** 0.5)
    tiles = unpatchify(np.asarray(batch.patches)[used], tuple(grid), side)
    pixels = (tiles / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return {
        "input_ids": torch.tensor(tokens, dtype=torch.long),
        "attention_mask": torch.tensor(np.asarray(batch.segments) > 0, dtype=torch.long),
        "pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32),
    }


@functools.cache
def torch_model(model_type: str = "qwen2", **text):
    """`transformers`' InternVL of the same sizes, from a config written here by hand, with random perturbed weights.

    `text` changes fields of the decoder's config; a dict is given as a tuple of pairs, a list as a tuple.
    """
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
            "attention_bias": True, "image_size": [32, 32], "patch_size": [8, 8], "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": model_type, "vocab_size": 337, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 6, "head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 48,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False,
            "pad_token_id": 0,
            **{key: _unfrozen(value) for key, value in text.items()},
        },
        image_token_id=tokenizer().token_id("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )  # fmt: skip
    torch.manual_seed(0)
    reference = InternVLForConditionalGeneration(config).eval()
    shake(reference)
    return reference


def _unfrozen(value):
    if not isinstance(value, tuple):
        return value
    pairs = value and all(isinstance(item, tuple) and isinstance(item[0], str) for item in value)
    return {key: _unfrozen(item) for key, item in value} if pairs else list(value)


def shake(module) -> None:
    """`perturbed` for a torch module, in place; weight matrices become large enough that tokens matter."""
    import torch

    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.2)
