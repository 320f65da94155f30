import json

import pytest

from tests.training.helpers import recipe_fields
from vlm_jax.config import build, complete, flatten, to_plain
from vlm_jax.errors import UserError
from vlm_jax.training.recipe import Recipe


def test_complete_has_every_field_and_survives_json():
    config = complete(Recipe, recipe_fields())
    assert config.stages[0].optimizer.b1 == 0.9
    recipe = build(Recipe, config)
    assert build(Recipe, json.loads(json.dumps(to_plain(recipe)))) == recipe


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("stages", 0, "optimizer", "learning_rat"),
            1.0,
            r"stages\[0\]\.optimizer\.learning_rat: unknown .*'learning_rate'",
        ),
        (("stages", 1, "steps"), "many", r"config\.stages\[1\]\.steps: .*integer.*'many'"),
        (("stages", 0, "data", "rows"), 2.5, r"config\.stages\[0\]\.data\.rows: .*2\.5"),
        (("system", "model", "vision", "width"), None, r"config\.system\.model\.vision\.width"),
        (("seed",), True, r"config\.seed: .*True"),
        (("stages", 0, "objective", "type"), "generat", r"config\.stages\[0\]\.objective"),
        # The member of a union is told as a type, not as if it were a field.
        (("data", "type"), "meta", r"config\.data\.(name|directory|data_dir): unknown field of type 'meta'(;|$)"),
        (("system", "template"), "nonsense", r"template.*nonsense.*internvl2"),
        (("system", "layout", "tile_size"), 448, r"tile_size is 448"),
    ],
)
def test_mistakes_name_their_field(path, value, message):
    fields = to_plain(build(Recipe, recipe_fields()))
    node = fields
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        build(Recipe, fields)
    assert "\n" not in str(error.value)


def test_missing_field_is_named():
    fields = recipe_fields()
    del fields["stages"][0]["objective"]
    with pytest.raises(UserError, match=r"config\.stages\[0\]\.objective: required field is missing"):
        build(Recipe, fields)


def test_flatten_names_list_items():
    assert flatten({"a": [{"b": 1}, 2]}) == {"config.a[0].b": 1, "config.a[1]": 2}
