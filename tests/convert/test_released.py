"""Sizes of released models, from their configs, without any weights."""

import math

import pytest

from tests import released
from vlm_jax.convert.folders import parameter_shapes


@pytest.mark.parametrize("size", released.PARAMETERS)
def test_parameter_counts(size):
    shapes = parameter_shapes(released.system(size).model)
    assert sum(math.prod(shape) for shape in shapes.values()) == released.PARAMETERS[size]
    vision = sum(math.prod(shape) for path, shape in shapes.items() if path.startswith("vision/"))
    assert vision == 304_012_288
