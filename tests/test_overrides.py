import pytest

from vlm_jax.config import to_config_dict
from vlm_jax.overrides import missing_field, wrong_value

CONFIG = to_config_dict(
    {"seed": 0, "rate": 0.5, "fast": False, "name": "x", "start": None, "globs": ["a/**", "b"], "none": [],
     "stages": [{"name": "read", "steps": 4}, {"name": "tune", "steps": 9}], "data": {"rows": 2}}
)  # fmt: skip


@pytest.mark.parametrize(
    "path", ["config.seed", "config.stages[1].steps", "config.stages[-2].steps", "config.data.rows"]
)
def test_what_is_there(path):
    assert missing_field(CONFIG, path) == ""


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("config.sead", "config has no 'sead' (did you mean 'seed'?); there are data, fast, "),
        ("config.data.zzz", "config.data has no 'zzz'; there are rows"),
        ("config.stages[2].steps", "config.stages has no [2]; there are [0] read, [1] tune"),
        ("config.stages[-3]", "config.stages has no [-3]; "),
        ("config.stages[tune].steps", "config.stages has no [tune]; there are [0] read, [1] tune"),
        (
            "config.stages.steps",
            "config.stages is a list: say which of [0] read, [1] tune, as in config.stages[1].steps",
        ),
        ("config.globs[2]", "config.globs has no [2]; there are [0] to [1]"),
        # ml_collections can set a list, and what is in an item of it, but not an item.
        ("config.globs[0]", "an item cannot be set by itself; set them all, as --config.globs=('a/**', 'b')"),
        ("config.none[0]", "config.none has no [0]; there are none"),
        ("config.seed.x", "config.seed is 0, which has no fields"),
        ("config.name.x", "config.name is 'x', which has no fields"),
        ("config.name[0]", "config.name is no list"),
        ("config.start.model", "config.start is None in this recipe, so that it has no fields"),
        ("config.stages[0]steps", "cannot be read; fields are named as in "),
        ("config..seed", "cannot be read; "),
    ],
)
def test_what_is_not_there(path, rest):
    assert missing_field(CONFIG, path).startswith(f"--{path}: {rest}")


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("config.seed", "must be a whole number; the recipe has 0"),
        ("config.rate", "must be a number; the recipe has 0.5"),
        ("config.fast", "must be true or false; the recipe has False"),
        ("config.stages[1].steps", "must be a whole number; the recipe has 9"),
        ("config.data", "it has fields of its own, so set one of them: rows"),
    ],
)
def test_wrong_values(path, rest):
    assert wrong_value(CONFIG, path, "?") == f"--{path}=?: {rest}"
    assert wrong_value(CONFIG, "config.start", "?") == ""
