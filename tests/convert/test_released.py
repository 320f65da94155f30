"""Sizes of released models, from their configs, without any weights."""

import math

import pytest

from tests import released
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.convert.internvl_chat import read_config
from vlm_jax.errors import UserError


@pytest.mark.parametrize("size", released.PARAMETERS)
def test_parameter_counts(size):
    shapes = parameter_shapes(released.system(size).model)
    assert sum(math.prod(shape) for shape in shapes.values()) == released.PARAMETERS[size]
    vision = sum(math.prod(shape) for path, shape in shapes.items() if path.startswith("vision/"))
    assert vision == 304_012_288


def test_a_pixel_shuffle_of_the_first_version_is_refused():
    """What InternVL's config class takes where the field is missing."""
    config = {key: value for key, value in released.config("1b").items() if key != "ps_version"}
    with pytest.raises(UserError, match="ps_version must be 'v2', is 'v1'"):
        read_config(config, {})
