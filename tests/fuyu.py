"""A Fuyu of a few thousand parameters, its tokenizer, and the same thing in `transformers`."""

import functools
import io

import numpy as np
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers

from tests import tiny
from vlm_jax import globs
from vlm_jax.config import build
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.inference.model import Model
from vlm_jax.system import System

PATCH, WIDTH, HEIGHT = 4, 40, 24
"""Side of a patch, and size of the largest picture that is not shrunk, in pixels."""

SLOT = 6
SIZES = {"one slot": (8, 9), "several": (40, 24), "ragged": (17, 5), "shrunk": (100, 30), "one pixel": (1, 1)}
"""Width and height of pictures; of these 6, 60, 10, 30 and 1 patches remain."""


@functools.cache
def backend() -> tokenizers.Tokenizer:
    """A Unigram vocabulary with bytes, in which Fuyu's marks are pieces like others, as in its release."""
    text = "User: Assistant: What is the total? The total is 128.50. Which photograph is brighter, 1 or 2?"
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
    pieces += [(mark, 0.0) for mark in ("|SPEAKER|", "|NEWLINE|", "|ENDOFTEXT|")]
    words = dict.fromkeys("▁" + word for word in text.split())
    pieces += [(word, -3.0) for word in words]
    pieces += [(letter, -8.0) for letter in dict.fromkeys("▁" + text.replace(" ", ""))]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(backend(), {"bos_token": "<s>", "eos_token": "|ENDOFTEXT|"})


def system_fields(**layout) -> dict:
    """All of Persimmon's flags; `layout` changes fields of the layout."""
    decoder = dict(
        vocab_size=backend().get_vocab_size(), width=32, depth=2, heads=2, kv_heads=2, head_dim=16, mlp_width=48,
        activation="relu2", norm="layer_norm", norm_eps=1e-5, gated=False, out_bias=True, mlp_bias=True,
        qk_norm="head_layer_norm", rope_theta=25000.0, rotary_fraction=0.5, max_tokens=256,
    )  # fmt: skip
    return {
        "model": {
            "vision": {"type": "patch_projection", "patch_size": PATCH, "width": 32, "patches": SLOT},
            "connector": {"type": "identity"},
            "decoder": decoder,
        },
        "layout": dict(type="native_raster", patch_size=PATCH, max_width=WIDTH, max_height=HEIGHT, slot=SLOT, **layout),
        "template": "fuyu",
    }


@functools.cache
def system(**layout) -> System:
    return build(System, system_fields(**layout))


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(system().model)
    fresh = {p: np.ones(s) if len(s) == 1 else rng.standard_normal(s) * s[0] ** -0.5 for p, s in shapes.items()}
    fresh["decoder/embedding"] *= 10
    fresh["vision/patch_embedding/kernel"] *= 10
    return tiny.perturbed(globs.unflatten(fresh), seed=1)


@functools.cache
def model(**layout) -> Model:
    return Model(system(**layout), params(), tokenizer())


def picture(width: int, height: int, seed: int = 0) -> bytes:
    return tiny.png(width, height, seed)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@functools.cache
def conversations() -> tuple[Conversation, ...]:
    """A picture of every size, a conversation without one, and a second turn."""
    asked = Turn("user", "What is the total?")
    more = (Turn("assistant", "128."), Turn("user", "Which is it, 1 or 2?"))
    return (
        *(Conversation((asked,), (picture(*size, seed),), name) for seed, (name, size) in enumerate(SIZES.items())),
        Conversation((asked,), (), "text"),
        Conversation((asked, *more), (picture(23, 24),), "two turns"),
    )


def torch_rows(batch):
    """Row by row what `FuyuForCausalLM` wants in place of a `Batch`."""
    import torch

    for row in range(len(batch.tokens)):
        length = int((batch.segments[row] > 0).sum())
        inputs = {"input_ids": torch.tensor(batch.tokens[row : row + 1, :length], dtype=torch.long)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        slots = zip(batch.patches[row], batch.tile_grid[row].prod(axis=1), strict=True)
        patches = np.concatenate([slot[:count] for slot, count in slots])
        if len(patches):
            inputs["pixel_values"] = torch.tensor((patches / 255 - 0.5) / 0.5, dtype=torch.float32)[None]
        yield inputs
