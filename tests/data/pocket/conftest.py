import pytest

from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.records import make_record
from vlm_jax.data.pocket.scene import TASKS


@pytest.fixture(scope="session")
def material():
    return load_material(0)


@pytest.fixture(scope="session")
def records(material):
    """{(split, task): records}, enough for shares to mean something."""
    counts = {"train": 70, "validation": 15, "test": 90}
    return {
        (split, task): [make_record(0, split, task, number, material[split]) for number in range(count)]
        for split, count in counts.items()
        for task in TASKS
    }
