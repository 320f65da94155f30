import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vlm_jax.models.positions import resize_positions


def table(grid, class_token=True, seed=0):
    """As large as the positions of released towers, or larger."""
    return 0.1 * np.random.default_rng(seed).standard_normal((grid**2 + class_token, 6)).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), [(24, 32), (16, 32), (27, 32), (27, 24), (32, 16), (3, 7), (7, 3), (1, 4)])
def test_equal_to_torch(old, new):
    torch = pytest.importorskip("torch")
    given = table(old)
    found = resize_positions(given, old, new, class_token=True)
    image = torch.tensor(given[1:].T.reshape(1, 6, old, old))
    expected = torch.nn.functional.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    assert found.shape == (1 + new**2, 6)
    np.testing.assert_array_equal(found[0], given[0])
    np.testing.assert_allclose(found[1:], expected[0].reshape(6, -1).T, rtol=0, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), [((4, 4), (3, 5)), ((3, 5), (6, 4)), ((2, 8), (4, 4))])
def test_grids_that_are_not_square_and_jax(old, new):
    torch = pytest.importorskip("torch")
    rows, columns = old
    given = 0.1 * np.random.default_rng(0).standard_normal((1 + rows * columns, 6)).astype(np.float32)
    image = torch.tensor(given[1:].T.reshape(1, 6, *old), requires_grad=True)
    expected = torch.nn.functional.interpolate(image, size=new, mode="bicubic", align_corners=False)
    expected.square().sum().backward()
    found = resize_positions(given, old, new, class_token=True)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found[1:], expected.detach()[0].reshape(6, -1).T, rtol=0, atol=1e-6)

    def squares(x):
        resized = resize_positions(x, old, new, class_token=True)
        return jnp.sum(resized[1:] ** 2), resized

    gradient, resized = jax.jit(jax.grad(squares, has_aux=True))(given)
    np.testing.assert_allclose(resized, found, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient[1:], image.grad[0].reshape(6, -1).T, rtol=0, atol=2e-6)
    assert not gradient[0].any()


def test_equal_grids_change_nothing():
    given = table(5)
    assert resize_positions(given, 5, (5, 5), class_token=True) is given


def test_without_class_token_and_in_half_precision():
    given = table(4, class_token=False)
    found = resize_positions(given.astype(ml_dtypes.bfloat16), 4, 6, class_token=False)
    assert found.dtype == ml_dtypes.bfloat16
    exact = resize_positions(given.astype(ml_dtypes.bfloat16).astype(np.float32), 4, 6, class_token=False)
    np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16))
    # Rows and columns are not swapped: what rises downwards still does.
    rising = np.repeat(np.arange(8.0, dtype=np.float32), 8)[:, None]
    inner = resize_positions(rising, 8, 16, class_token=False).reshape(16, 16)[4:12]
    assert np.diff(inner, axis=0).min() > 0.3
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.0, rtol=0, atol=1e-5)


def test_a_table_of_another_size():
    with pytest.raises(ValueError, match=r"a table of 26 positions is not one of 0 \+ 5 x 5"):
        resize_positions(table(5), 5, 6, class_token=False)
