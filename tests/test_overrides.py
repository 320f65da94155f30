from typing import Literal

import pytest

from vlm_jax.config import build, complete, config_class, one_of, to_config_dict, to_plain
from vlm_jax.errors import UserError
from vlm_jax.overrides import missing_field, new_types, with_types, wrong_value

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


@config_class
class Files:
    type: Literal["files"] = "files"
    train: str = ""
    rows: int = 2


@config_class
class Shards:
    type: Literal["shards"] = "shards"
    folder: str = "sets"
    rows: int = 3
    train: int = 0


@config_class
class Job:
    seed: int = 0
    parts: tuple[one_of(Files, Shards), ...] = ()
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.seed == 7 and any(isinstance(part, Shards) for part in self.parts):
            raise UserError("config: shards are unlucky")


def test_types_are_found_among_the_arguments():
    arguments = ["--config=x.py", "--config.data.type=tfds", "-config.stages[1].objective.type=distill", "--config.a=1"]
    assert new_types(arguments) == {".data": "tfds", ".stages[1].objective": "distill"}


def test_a_section_of_another_type_keeps_what_it_can():
    config = complete(Job, {"parts": [{"rows": 9}, {"train": "a.json"}]})
    found = with_types(Job, config, {".parts[1]": "shards", ".parts[0]": "shards", ".parts[5]": "shards", ".no": "x"})
    assert to_plain(found.parts) == [
        {"type": "shards", "folder": "sets", "rows": 9, "train": 0},  # its `train` was text
        {"type": "shards", "folder": "sets", "rows": 2, "train": 0},
    ]
    assert missing_field(found, "config.parts[0].folder") == ""


def test_a_type_that_is_not_there_is_refused():
    config = complete(Job, {"parts": [{"rows": 9}]})
    with pytest.raises(UserError, match=r"\.parts\[0\]\.type: there is no 'nothing', there are 'files'"):
        with_types(Job, config, {".parts[0]": "nothing"})


def test_what_has_no_type_or_does_not_fit_stays_what_it_is():
    config = complete(Job, {"parts": [{"rows": 9}]})
    assert to_plain(with_types(Job, config, {".seed": "x", ".kind": "b", ".parts[7]": "shards"})) == to_plain(config)
    unlucky = complete(Job, {"parts": [{"rows": 9}], "seed": 7})
    assert to_plain(with_types(Job, unlucky, {".parts[0]": "shards"})) == to_plain(unlucky)
    assert build(Job, unlucky).parts[0].rows == 9
