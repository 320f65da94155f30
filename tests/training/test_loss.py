import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.training.loss import cross_entropy


@pytest.mark.parametrize("chunk", [1, 6, 512])
def test_equals_plain_cross_entropy_with_its_gradients(chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (3, 12, 8))
    kernel = jax.random.normal(keys[1], (8, 50))
    targets = jax.random.randint(keys[2], (3, 12), 0, 50)
    weights = jax.random.uniform(keys[3], (3, 12)) * (jnp.arange(12) % 6 > 3)  # most chunks are skipped

    def plain(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden @ kernel)
        return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

    chunked = lambda h, k: cross_entropy(h, k, targets, weights, chunk)[0]  # noqa: E731
    np.testing.assert_allclose(chunked(hidden, kernel), plain(hidden, kernel), rtol=1e-5)
    got, want = jax.grad(chunked, (0, 1))(hidden, kernel), jax.grad(plain, (0, 1))(hidden, kernel)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


def test_counts_weighted_hits():
    hidden, kernel = jnp.eye(4)[None], jnp.eye(4)
    _, right = cross_entropy(hidden, kernel, jnp.array([[0, 1, 0, 3]]), jnp.array([[1.0, 0.5, 1.0, 0.0]]))
    assert right == 1.5
