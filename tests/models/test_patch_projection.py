"""What an image of Fuyu's does, and does not, to the text behind it."""

import numpy as np
import pytest

from tests import fuyu
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.patches import patchify

SIZE = (17, 5)  # 5 x 2 patches in two slots of six


@pytest.fixture(scope="module")
def batch():
    return fuyu.model().batch(fuyu.conversations())


@pytest.fixture(scope="module")
def logits(batch):
    return np.asarray(fuyu.model().logits(batch))


def test_a_picture_is_as_many_tokens_as_patches_and_one_a_row(batch):
    for row, (width, height) in enumerate([(8, 9), (40, 24), (17, 5), (40, 12), (1, 1)]):
        columns, rows = -(-width // 4), -(-height // 4)
        assert (batch.splice[row] >= 0).sum() == columns * rows
        assert (batch.tokens[row] == fuyu.tokenizer().token_id("|NEWLINE|")).sum() == rows
        assert (batch.tokens[row] == fuyu.tokenizer().token_id("|SPEAKER|")).sum() == columns * rows


def test_what_stands_behind_an_image_changes_nothing(batch, logits):
    """Bytes of a slot behind the image's last patch, and whole slots that it does not have."""
    used = np.arange(fuyu.SLOT) < batch.tile_grid.prod(axis=-1)[..., None]
    noise = np.random.default_rng(0).integers(0, 256, batch.patches.shape, np.uint8)
    other = np.asarray(fuyu.model().logits(batch._replace(patches=np.where(used[..., None], batch.patches, noise))))
    real = batch.segments > 0
    np.testing.assert_array_equal(other[real], logits[real])
    changed = np.asarray(fuyu.model().logits(batch._replace(patches=np.where(used[..., None], noise, batch.patches))))
    assert np.abs(changed - logits)[real].max() > 0.1


def test_a_picture_of_whole_patches_is_those_patches(batch):
    (data,) = fuyu.conversations()[1].images
    pixels = np.asarray(fuyu.opened(data).convert("RGB"))
    np.testing.assert_array_equal(batch.patches[1].reshape(-1, 48), patchify(pixels[None], fuyu.PATCH)[0])
    assert batch.splice[1][batch.splice[1] >= 0].tolist() == list(range(60))


def test_a_filled_edge_is_no_more_than_its_last_patches(logits):
    """A picture with the filling already in it says the same: what is right and below reaches no further."""
    (view,) = fuyu.system().layout.views(fuyu.opened(fuyu.conversations()[2].images[0]))
    assert view.shape == (8, 20, 3)
    model = fuyu.model()
    asked = Conversation((Turn("user", "What is the total?"),), (), "filled")
    from PIL import Image

    filled = model.batch([asked], [[Image.fromarray(view)]])
    length = filled.tokens.shape[1]
    np.testing.assert_allclose(np.asarray(model.logits(filled))[0], logits[2, :length], atol=1e-5)
