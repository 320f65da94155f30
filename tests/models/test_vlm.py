"""The composed model against itself: packing, scanning, rematerialisation, sizes."""

from functools import partial

import jax
import numpy as np
import pytest

from tests import tiny
from vlm_jax.batch import BatchShape, empty_batch
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.plan.packing import pack_row
from vlm_jax.models.connector import PixelShuffleMLPConfig, pixel_shuffle
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLM, VLMConfig


@pytest.fixture(scope="module")
def packed():
    """The three conversations of `tiny` in one row, in another order, with padding."""
    preparer = tiny.system().preparer(tiny.tokenizer(), 256)
    examples = [preparer(c, open_turn=True) for c in reversed(tiny.conversations())]
    total = sum(len(e.tokens) for e in examples)
    model = tiny.system().model
    batch = empty_batch(BatchShape(1, total + 7, 10, model.vision.patches, model.patch_values))
    pack_row(examples, batch, 0, model.tokens_per_tile)
    return batch, [len(e.tokens) for e in examples]


def test_packed_row_equals_its_conversations_alone(packed):
    batch, lengths = packed
    together = np.asarray(tiny.model().logits(batch))[0]
    alone = np.asarray(tiny.model().logits(tiny.model().batch(tiny.conversations())))[::-1]
    start = 0
    for row, length in zip(alone, lengths, strict=True):
        assert np.abs(together[start : start + length] - row[:length]).max() <= 1e-5
        start += length
    assert np.isfinite(together).all()


def test_independent_questions_do_not_see_each_other():
    turns = [Turn("user", "<image>\nWhat is the total?"), Turn("assistant", "128.50"), Turn("user", "Which is it?"),
             Turn("assistant", "1"), Turn("user", "Total, or 2?"), Turn("assistant", "Which is brighter?")]  # fmt: skip
    image = (tiny.png(64, 32, 1),)
    preparer, per_tile = tiny.system().preparer(tiny.tokenizer(), 256), tiny.system().model.tokens_per_tile
    model = tiny.system().model

    def logits(conversations):
        examples = [preparer(conversation) for conversation in conversations]
        length = max(len(example.tokens) for example in examples)
        batch = empty_batch(BatchShape(len(examples), length, 3, model.vision.patches, model.patch_values))
        for row, example in enumerate(examples):
            pack_row([example], batch, row, per_tile)
        return examples, np.asarray(tiny.model().logits(batch))

    (together,), (found,) = logits([Conversation((tiny.BRIEF, *turns), image, "x", independent=True)])
    pairs = [(Turn("user", f"<image>\n{q.text.removeprefix(f'<image>{chr(10)}')}"), a)
             for q, a in zip(turns[::2], turns[1::2], strict=True)]  # fmt: skip
    alone, expected = logits([Conversation((tiny.BRIEF, *pair), image, "x") for pair in pairs])
    for branch, (example, row) in enumerate(zip(alone, expected, strict=True), start=1):
        seen = np.isin(together.branches, (0, branch))
        assert np.abs(found[seen] - row[: len(example.tokens)]).max() <= 1e-5


def test_scan_and_remat_change_nothing(packed):
    @partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(params, compute):
        logits = VLM(tiny.system().model, compute).apply({"params": params}, packed[0])
        return (jax.nn.log_softmax(logits) ** 2).mean()

    compute = Compute(scan_layers=True, remat="full")
    (plain, plain_gradient), (value, gradient) = loss(tiny.params(), Compute()), loss(tiny.params(), compute)
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    difference = jax.tree.map(lambda a, b: float(abs(a - b).max() / (abs(a).max() + 1e-3)), plain_gradient, gradient)
    assert max(jax.tree.leaves(difference)) < 1e-4


def test_size_of_mini_internvl_1b():
    config = VLMConfig(vision=VisionConfig(), connector=PixelShuffleMLPConfig(), decoder=DecoderConfig())
    shapes = parameter_shapes(config)
    sizes = dict.fromkeys(("vision", "connector", "decoder"), 0)
    for path, shape in shapes.items():
        sizes[path.split("/")[0]] += int(np.prod(shape))
    assert sizes == {"vision": 304_012_288, "connector": 4_482_816, "decoder": 629_663_872}
    assert sum(sizes.values()) == 938_158_976
    assert config.tokens_per_tile == 256


def test_pixel_shuffle_closed_form():
    """Version 2: the four patches of a cell one after another, left to right and top to bottom."""
    grid = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    ours = np.asarray(pixel_shuffle(grid.reshape(2, 16, 3), 2)).reshape(2, 2, 2, 12)
    for i in range(2):
        for j in range(2):
            cell = [grid[:, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]
            np.testing.assert_array_equal(ours[:, i, j], np.concatenate(cell, axis=-1))
