import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from vlm_jax.convert.table import Concatenated, Flat, Grouped, Kernel, PatchKernel, Same, check, plan, read, rule, write
from vlm_jax.errors import UserError

CASES = [
    (Flat(), [(3, 4)], (12,)),
    (Same(leading=2), [(5,)], (1, 1, 5)),
    (Same(leading=1), [(4, 5)], (1, 4, 5)),
    (Kernel(), [(6, 2, 5)], (10, 6)),
    (Kernel(in_axes=2), [(2, 5, 6)], (6, 10)),
    (PatchKernel(), [(2 * 2 * 3, 7)], (7, 3, 2, 2)),
    (Concatenated(Kernel()), [(6, 4, 2), (6, 1, 2), (6, 1, 2)], (12, 6)),
    (Concatenated(Flat()), [(4, 2), (1, 2), (1, 2)], (12,)),
    (Grouped(), [(6, 4, 2), (6, 2, 2), (6, 2, 2)], (16, 6)),
    (Grouped(), [(4, 2), (2, 2), (2, 2)], (16,)),
]


@given(st.sampled_from(CASES), st.sampled_from([np.float32, ml_dtypes.bfloat16]), st.integers(0, 99))
def test_transforms_are_reversible(case, dtype, seed):
    transform, shapes, stored_shape = case
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    stored = transform.write(arrays)
    assert stored.shape == stored_shape == tuple(transform.stored_shape(shapes))
    back = transform.read(stored, shapes)
    assert all(b.dtype == dtype and b.shape == a.shape and (a == b).all() for a, b in zip(arrays, back, strict=True))


def test_kernel_is_the_same_linear_map():
    weight, x = np.random.default_rng(0).standard_normal((10, 6)), np.arange(6.0)
    kernel = Kernel().read(weight, [(6, 2, 5)])[0]
    np.testing.assert_allclose(np.einsum("d,dhe->he", x, kernel).reshape(-1), weight @ x)
    out = Kernel(in_axes=2).read(weight.T, [(2, 5, 6)])[0]
    np.testing.assert_allclose(np.einsum("he,hed->d", np.arange(10.0).reshape(2, 5), out), weight.T @ np.arange(10.0))


def test_fused_parts_come_in_the_order_of_the_paths():
    stored = np.arange(8.0)
    q, k = Concatenated(Flat()).read(stored, [(3, 2), (1, 2)])
    assert q.reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]
    assert k.reshape(-1).tolist() == [6, 7]


def test_groups_come_kv_head_by_kv_head():
    q, k, v = Grouped().read(np.arange(8.0), [(4, 1), (2, 1), (2, 1)])
    assert [x.reshape(-1).tolist() for x in (q, k, v)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


RULES = [
    rule("layers/{i}/scale", "h.{i}.norm.weight", Flat()),
    rule(("layers/{i}/q/kernel", "layers/{i}/k/kernel"), "h.{i}.qk.weight", Concatenated(Kernel())),
    rule("head/kernel", "head.weight", Kernel()),
]
SHAPES = {f"layers/{i}/{name}": s for i in (0, 11) for name, s in
          {"scale": (4,), "q/kernel": (4, 2, 2), "k/kernel": (4, 1, 2)}.items()}  # fmt: skip


def test_layers_are_numbered_and_absent_parts_need_no_tensor():
    expected = plan(RULES, SHAPES)
    assert {key: stored.shape for key, stored in expected.items()} == {
        "h.0.norm.weight": (4,), "h.0.qk.weight": (6, 4), "h.11.norm.weight": (4,), "h.11.qk.weight": (6, 4),
    }  # fmt: skip
    params = {path: np.random.default_rng(0).standard_normal(shape) for path, shape in SHAPES.items()}
    back = read(expected, tiny.lazy(dict(write(expected, params))))
    assert back.keys() == params.keys()
    assert all((back[path] == params[path]).all() for path in params)


def test_all_problems_at_once():
    found = {"h.0.norm.weight": (5,), "h.0.qk.weight": (6, 4), "h.11.norm.weight": (4,), "h.12.norm.weight": (4,)}
    with pytest.raises(UserError) as error:
        check(plan(RULES, SHAPES), found, "folder")
    message = str(error.value)
    assert "3 problems" in message
    assert "missing: h.11.qk.weight" in message
    assert "not used by this model: h.12.norm.weight" in message
    assert "wrong shape: h.0.norm.weight is 5, the config asks for 4" in message


def test_a_parameter_without_a_rule_is_a_defect_of_the_table():
    with pytest.raises(ValueError, match="no rule for bias"):
        plan(RULES, {**SHAPES, "bias": (4,)})
    with pytest.raises(ValueError, match="overlap"):
        plan([*RULES, rule("layers/{i}/k/kernel", "again", Kernel())], SHAPES)
