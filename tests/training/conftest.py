import jax
import pytest

from tests.training.helpers import recipe_fields
from vlm_jax.config import build
from vlm_jax.training.loop import initial_params
from vlm_jax.training.recipe import Recipe


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return build(Recipe, recipe_fields())


@pytest.fixture(scope="session")
def params(recipe):
    return jax.jit(lambda: initial_params(recipe))()
