"""The decoder's flags: what cannot go together, and what they must leave alone."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import tiny
from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.layers import Compute, Norm
from vlm_jax.models.rotary import NoScaling, rotary_table, rotate
from vlm_jax.models.vlm import head, init_decoder

SMALL = {
    "vocab_size": 40, "width": 16, "depth": 2, "heads": 4, "kv_heads": 4, "head_dim": 10, "mlp_width": 24,
    "max_tokens": 64,
}  # fmt: skip
ODD = {
    **SMALL, "activation": "relu2", "gated": False, "parallel": True, "norm": "layer_norm", "out_bias": True,
    "mlp_bias": True, "head_bias": True, "qk_norm": "head_layer_norm", "sliding_window": 3, "rotary_fraction": 0.4,
    "scale_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotary_fraction": 0.3}, r"decoder\.rotary_fraction: rotary embeddings turn pairs, not 3 of 10 channels"),
        ({"rotary_fraction": 0.05}, r"decoder\.rotary_fraction: rotary embeddings turn pairs, not 0 of 10 channels"),
        ({"rotary_fraction": 1.5}, r"decoder\.rotary_fraction: must be above 0 and at most 1, is 1\.5"),
        ({"head_dim": 9}, r"decoder\.head_dim: rotary embeddings turn pairs, not 9 of 9 channels"),
        ({"sliding_window": 0}, r"decoder\.sliding_window: must be at least 1, or null, is 0"),
        ({"head_bias": True, "tie_embeddings": True}, r"decoder\.head_bias: a head that is tied"),
        ({"kv_heads": 3}, r"decoder\.kv_heads: 3 do not divide 4 heads"),
        ({"norm": "batch_norm"}, r"norm"),
        (
            {
                "rotary_fraction": 0.4,
                "rope_scaling": {
                    "type": "longrope", "short_factors": [1.0] * 5, "long_factors": [1.0] * 5,
                    "trained_tokens": 32, "factor": 2.0,
                },
            },
            r"decoder\.rope_scaling\.short_factors: 5 numbers for 2 pairs of channels",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(fields, message):
    with pytest.raises(UserError, match=message):
        build(DecoderConfig, {**SMALL, **fields})


def test_defaults_are_qwen2_as_ever():
    paths = set(init_decoder(build(DecoderConfig, SMALL), jax.random.key(0))["decoder"]["layers"]["0"])
    assert paths == {"attention", "attention_norm", "mlp", "mlp_norm"}


@pytest.fixture(scope="module")
def odd():
    """A decoder of all flags at once, and its parameters."""
    config = build(DecoderConfig, ODD)
    params = jax.tree.map(np.asarray, jax.jit(partial(init_decoder, config))(jax.random.key(0)))
    return config, tiny.perturbed(params, seed=1)


def test_scan_and_remat_change_nothing(odd):
    config, params = odd
    tokens = np.random.default_rng(0).integers(0, 40, (1, 12))
    positions, ones = np.arange(12)[None], np.ones((1, 12), np.int32)

    def logits(compute):
        run = lambda d: d.logits(d(d.embed(tokens), positions, ones, 0 * ones))  # noqa: E731
        return jax.jit(nn.apply(run, Decoder(config, compute)))({"params": params["decoder"]})

    plain = logits(Compute())
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(logits(Compute(scan_layers=True, remat="full")), plain, atol=1e-5)


def test_the_loss_sees_the_head_that_makes_the_logits(odd):
    config, params = odd
    hidden = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
    logits = nn.apply(Decoder.logits, Decoder(config, Compute()))({"params": params["decoder"]}, hidden)
    kernel, bias = head(params, config)
    np.testing.assert_allclose(hidden @ kernel + bias, logits, atol=1e-5)


def test_channels_behind_the_turned_ones_stay():
    x = np.random.default_rng(0).standard_normal((1, 5, 2, 10)).astype(np.float32)
    positions = np.arange(5)[None]
    table = rotary_table(positions, positions, 4, 1e4, NoScaling())
    turned = np.asarray(rotate(x, table))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(turned[..., :4], rotate(x[..., :4], table))
    assert np.abs(turned[:, 1:, :, :4] - x[:, 1:, :, :4]).max() > 0.1


def test_a_fresh_norm_of_gemma_keeps_the_scale():
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    (ours, fresh), (plain, _) = (
        Norm(kind, 1e-6).init_with_output(jax.random.key(0), x) for kind in ("rms_norm_plus_one", "rms_norm")
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    assert not np.any(fresh["params"]["scale"])
