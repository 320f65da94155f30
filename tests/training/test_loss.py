import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.training.loss import cross_entropy


@pytest.mark.parametrize(("chunk", "with_bias"), [(1, False), (6, True), (512, False)])
def test_equals_plain_cross_entropy_with_its_gradients(chunk, with_bias):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (3, 12, 8))
    kernel = jax.random.normal(keys[1], (8, 50))
    targets = jax.random.randint(keys[2], (3, 12), 0, 50)
    weights = jax.random.uniform(keys[3], (3, 12)) * (jnp.arange(12) % 6 > 3)  # most chunks are skipped
    inputs = (hidden, kernel, jax.random.normal(keys[4], (50,)))[: 3 if with_bias else 2]

    def plain(hidden, kernel, bias=0.0):
        log_p = jax.nn.log_softmax(hidden @ kernel + bias)
        return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

    chunked = lambda h, k, b=None: cross_entropy(h, k, targets, weights, chunk, b)[0]  # noqa: E731
    (got, got_gradients), (want, want_gradients) = (
        jax.value_and_grad(loss, tuple(range(len(inputs))))(*inputs) for loss in (chunked, plain)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for g, w in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


def test_counts_weighted_hits():
    hidden, kernel = jnp.eye(4)[None], jnp.eye(4)
    _, right = cross_entropy(hidden, kernel, jnp.array([[0, 1, 0, 3]]), jnp.array([[1.0, 0.5, 1.0, 0.0]]))
    assert right == 1.5
