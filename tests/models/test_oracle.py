"""The networks against `transformers`, with small random weights that go through the weight table."""

import numpy as np
import pytest

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert import internvl_hf, table
from vlm_jax.convert.folders import open_model_params
from vlm_jax.convert.lazy import materialise
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionConfig, VisionTransformer
from vlm_jax.models.vlm import VLM

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Our model of the weights that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("released")
    tiny.torch_model().save_pretrained(folder)
    return Model(tiny.system(), open_model_params(folder, tiny.system().model), tiny.tokenizer())


@pytest.fixture(scope="module")
def batch(released):
    return released.batch(tiny.conversations())


def test_logits(released, batch):
    assert batch.tile_segment.sum(axis=1).tolist() == [4, 0, 5]  # tiles of several images, none, and a thumbnail
    ours = np.asarray(released.logits(batch))
    with torch.no_grad():
        theirs = tiny.torch_model()(**tiny.torch_inputs(batch)).logits.numpy()
    real = batch.segments > 0
    assert np.abs(theirs[real]).max() > 1
    assert np.abs(ours - theirs)[real].max() <= 1e-4


def test_greedy_tokens(released, batch):
    stop = tiny.tokenizer().token_id("<|im_end|>")
    network = VLM(released.system.model, released.compute)
    ours = generate(network, released.params, batch, np.full(3, 20), stop)
    inputs = tiny.torch_inputs(batch)
    tiles = np.cumsum([0, *(batch.tile_segment > 0).sum(axis=1)])
    for row, length in enumerate((batch.segments > 0).sum(axis=1)):
        own = inputs["pixel_values"][tiles[row] : tiles[row + 1]]
        theirs = tiny.torch_model().generate(
            input_ids=inputs["input_ids"][row : row + 1, :length],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            **({"pixel_values": own} if len(own) else {}),
            max_new_tokens=20, do_sample=False, eos_token_id=stop, pad_token_id=0,
        )  # fmt: skip
        expected = theirs[0, length:].tolist()
        assert ours[row] == (expected[:-1] if expected[-1] == stop else expected)
    assert max(map(len, ours)) >= 16


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_vision_hidden_states(norm):
    """InternViT-300M's kind of block, and InternViT-6B's: RMSNorm, normalised q and k, no bias on q, k, v."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    large = norm == "rms_norm"
    torch.manual_seed(0)
    reference = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, norm_type=norm,
            attention_bias=not large, use_qk_norm=large, image_size=[28, 28], patch_size=[14, 14],
        )
    ).eval()  # fmt: skip
    tiny.shake(reference)
    config = VisionConfig(
        image_size=28, patch_size=14, width=24, depth=3, heads=3, mlp_width=40, norm=norm, qkv_bias=not large,
        qk_norm="full" if large else "none",
    )  # fmt: skip
    patches = np.random.default_rng(0).integers(0, 256, (2, 4, 14 * 14 * 3), dtype=np.uint8)
    network = VisionTransformer(config, Compute())
    stored = {f"vision_tower.{name}": value.detach().numpy() for name, value in reference.named_parameters()}
    import jax

    fresh = jax.eval_shape(network.init, jax.random.key(0), patches)["params"]
    shapes = {path: leaf.shape for path, leaf in globs.flatten({"vision": fresh}).items()}
    plan = table.plan(internvl_hf.VISION, shapes)
    table.check(plan, {key: value.shape for key, value in stored.items()}, "here")
    params = materialise(globs.unflatten(table.read(plan, tiny.lazy(stored))))["vision"]

    ours, captured = network.apply({"params": params}, patches, capture=2)
    pixels = tiny.torch_inputs(_as_batch(patches))["pixel_values"]
    with torch.no_grad():
        output = reference(pixel_values=pixels, output_hidden_states=True)
    assert np.abs(ours - output.last_hidden_state.numpy()).max() <= 1e-5
    assert np.abs(captured[0] - output.hidden_states[-2].numpy()).max() <= 1e-5


def _as_batch(patches):
    from vlm_jax.batch import BatchShape, empty_batch

    batch = empty_batch(BatchShape(1, 1, len(patches), *patches.shape[1:]))
    batch.patches[0], batch.tile_grid[:], batch.tile_segment[:] = patches, 2, 1
    return batch
