"""Attention on every length around its blocks, against JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.attention import CAUSAL_BLOCK, CAUSAL_BLOCKS, attend, packed_mask


@pytest.mark.parametrize("length", [1, CAUSAL_BLOCK, CAUSAL_BLOCK + 1, CAUSAL_BLOCK * CAUSAL_BLOCKS + 13])
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, None), (3, 3, 100)])
def test_causal_blocks(length, heads, kv_heads, window):
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, n, 8)), jnp.float32) for n in (heads, kv_heads, kv_heads))
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length)), axis=1))
    branches = jnp.asarray(rng.integers(0, 3, (2, length)))
    positions = jnp.broadcast_to(jnp.arange(length), segments.shape)
    mask = packed_mask(positions, segments, branches, window)

    def total(implementation, q, k, v):
        return jnp.sum(jnp.sin(implementation(q, k, v)))

    def ours(q, k, v):
        return attend(q, k, v, mask, "xla", causal=True)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), atol=1e-6)
    gradients = (jax.grad(lambda *x, f=f: total(f, *x), argnums=(0, 1, 2))(q, k, v) for f in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_causal_attention_leaves_out_products_with_keys_that_are_hidden():
    length = 8 * CAUSAL_BLOCK
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 1, length, length), bool)

    def flops(causal):
        step = jax.jit(lambda q, k, v, m: attend(q, k, v, m, "xla", causal=causal))
        return step.lower(x, x, x, mask).cost_analysis()["flops"]

    assert flops(True) < 0.65 * flops(False)
