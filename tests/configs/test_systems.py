"""Every file of `configs/systems/` keeps the rules of CONTRIBUTING.md, and the next one is held to them as it is.

Its tiny variant really trains all its stages on the pocket data, with the loop that real runs have.
"""

import ast
import functools
import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.training.helpers import start
from vlm_jax.checkpoints import read_params
from vlm_jax.config import build, to_plain
from vlm_jax.config import flatten as config_fields
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.data.text.corpus import training_text
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.globs import flatten, last_match, unflatten
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.recipe_files import read_recipe
from vlm_jax.training import loop, progress
from vlm_jax.training.data import MetaData, PocketData
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.systems import TINY

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "systems").glob("*.py"))
FIELDS = {"number": int, "name": str, "oracle": str, "parameters": dict, "counted": str, "missing": str}

every = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@functools.cache
def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def recipe_of(path, argument) -> Recipe:
    return build(Recipe, load(path).get_config(argument))


@functools.cache
def size_of(model: str) -> int:
    """Parameters of a model that is given by its config in JSON: systems share some."""
    shapes = parameter_shapes(build(VLMConfig, json.loads(model)))
    return sum(map(math.prod, shapes.values()))


def literal(tree, name):
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    (value,) = (node.value for node in assigned if [getattr(target, "id", "") for target in node.targets] == [name])
    return ast.literal_eval(value)


@every
def test_it_is_short_and_nothing_but_a_config(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    tree = ast.parse(text)
    docstring, *body = tree.body
    assert isinstance(docstring, ast.Expr)
    assert {type(node) for node in body} <= {ast.ImportFrom, ast.Assign, ast.FunctionDef}
    assert [node.name for node in body if isinstance(node, ast.FunctionDef)] == ["get_config"]
    imported = {node.module for node in body if isinstance(node, ast.ImportFrom)}
    assert imported <= {"vlm_jax.models.sizes", "vlm_jax.training.systems"}
    # What an argument means stands in tables.
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.Match)]


@every
def test_it_says_what_it_is_and_how_it_is_run(path):
    recipe = read_recipe(path)
    first, _, rest = recipe.doc.partition("\n")
    assert first.endswith(".")
    assert not rest.startswith("\n\n")
    command = f"python -m vlm_jax.main --config=configs/systems/{path.name}:"
    said = [line.split(command)[1].split()[0] for line in rest.splitlines() if command in line]
    assert said[1:] == [TINY]
    assert set(said) <= set(recipe.arguments)
    assert "Numbers: " in rest


@every
def test_its_table_can_be_read_without_running_it(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    table = literal(tree, "SYSTEM")
    assert table == load(path).SYSTEM
    assert {name: type(value) for name, value in table.items()} == FIELDS
    assert 1 <= table["number"] <= 24
    assert table["name"]
    assert table["oracle"]
    assert table["counted"]
    assert {*table["parameters"], TINY} == set(literal(tree, "ARGUMENTS"))


def test_every_system_has_one_file():
    numbers = [load(path).SYSTEM["number"] for path in FILES]
    assert len(set(numbers)) == len(numbers)


@every
def test_every_argument_makes_a_recipe(path):
    names = [recipe_of(path, argument).name for argument in load(path).ARGUMENTS]
    assert len(set(names)) == len(names)
    assert isinstance(recipe_of(path, TINY).data, PocketData)
    for argument in load(path).SYSTEM["parameters"]:
        recipe = recipe_of(path, argument)
        assert isinstance(recipe.data, MetaData)
        assert recipe.start is not None
        assert all(stage.data.weights for stage in recipe.stages)  # sources are named
    with pytest.raises(UserError, match=rf"{path.name}:nonsense: no such argument; there are "):
        load(path).get_config("nonsense")


@every
@pytest.mark.slow
def test_number_of_parameters(path):
    for argument, published in load(path).SYSTEM["parameters"].items():
        model = recipe_of(path, argument).system.model
        assert size_of(json.dumps(to_plain(model))) == published, argument


@every
def test_the_tiny_variant_is_one_of_the_published_ones_with_other_numbers(path):
    tiny = flags_of(recipe_of(path, TINY))
    assert tiny in [flags_of(recipe_of(path, argument)) for argument in load(path).SYSTEM["parameters"]]


def flags_of(recipe):
    """What of a recipe is no size: kinds of parts, formats, and what its stages train on which terms."""
    fields = config_fields(to_plain(recipe.system), "system")
    system = {path: "number" if type(value) in (int, float) else value for path, value in fields.items()}
    stages = [
        (
            stage.name, stage.trainable, sorted(stage.tune_from_layer), stage.template, stage.image_size is None,
            stage.data.order, stage.data.packing, stage.data.too_long, stage.data.cap > 0, stage.loss_reduction,
            stage.optimizer.multipliers, stage.optimizer.weight_decay, stage.optimizer.clip_norm,
        )
        for stage in recipe.stages
    ]  # fmt: skip
    return system, stages


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return PocketData(preset="tiny").open(tmp_path_factory.mktemp("pocket"), 0, lambda line: None)


@pytest.fixture(scope="module")
def tokenizer_for(splits):
    @functools.cache
    def train(template, words):
        text = training_text(splits.train, TEMPLATES[template], 1000)
        return Tokenizer.train(text, words, TEMPLATES[template])

    return train


@every
@pytest.mark.slow
def test_tiny_trains_every_stage_and_freezes_exactly(path, splits, tokenizer_for, tmp_path, monkeypatch):
    recipe, before = recipe_of(path, TINY), []
    fresh = loop._fresh_params

    def remembered(*arguments):
        params = fresh(*arguments)
        before.append(flatten(jax.device_get(params)))
        return params

    monkeypatch.setattr(loop, "_fresh_params", remembered)
    monkeypatch.setattr(progress, "LOG_EVERY", 1)
    start(recipe, tmp_path, splits, tokenizer_for(recipe.system.template, recipe.tokenizer_size))

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    number = 0
    for stage in recipe.stages:
        losses = [line["loss"] for line in lines if line["stage"] == stage.name]
        assert len(losses) == stage.steps
        assert np.mean(losses[:3]) > np.mean(losses[-3:]), (stage.name, losses)

        number += stage.steps
        after = flatten(read_params(tmp_path / "checkpoints", number)[0])
        rules = [(glob.removeprefix("!"), not glob.startswith("!")) for glob in stage.rules]
        chosen = {path for path in after if last_match(path, rules, False)}
        begun = jax.device_get(flatten(loop.fit_positions(unflatten(before[-1]), recipe.models_in(stage))))
        moved = {path for path, value in after.items() if not np.array_equal(value, begun[path])}
        assert moved <= chosen, stage.name
        # What trains does move, but for layers and norms that the features never pass.
        assert {part_of(path) for path in moved} == {part_of(path) for path in chosen}, stage.name
        before.append(after)


def part_of(path):
    return path.split("/")[0]
