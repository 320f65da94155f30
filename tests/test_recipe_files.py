"""What recipes say of themselves, and that it is true."""

import importlib.util
from pathlib import Path

import pytest

from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.recipe_files import check_recipe, describe, find_recipes, read_recipe
from vlm_jax.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
FOUND = [*sorted(ROOT.glob("configs/*.py")), *sorted(ROOT.glob("configs/systems/*.py"))]
RECIPES = [path for path in FOUND if "def get_config" in path.read_text(encoding="utf-8")]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, text):
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_argument_of_every_recipe_is_described_and_makes_a_config(path):
    recipe, module = read_recipe(path), load(path)
    assert recipe.doc
    assert recipe.arguments == module.ARGUMENTS
    names = set()
    for argument, (what, time) in recipe.arguments.items():
        assert what, argument
        assert time, argument
        config = build(Recipe, module.get_config(argument))
        names.add(config.name)
    assert len(names) == len(recipe.arguments)
    assert recipe.default in recipe.arguments
    assert build(Recipe, module.get_config()) == build(Recipe, module.get_config(recipe.default))
    with pytest.raises(UserError):  # the table is not the only place that knows
        module.get_config("nonsense")


def test_recipes_are_found_here_or_beside_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert find_recipes() == [path.relative_to(ROOT) for path in RECIPES]
    monkeypatch.chdir(ROOT / "docs")
    assert find_recipes() == RECIPES
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    mine = write(tmp_path / "configs" / "deep", "def get_config(size='small'):\n    return {}")
    (tmp_path / "configs" / "common.py").write_text("WIDTH = 3")  # no recipe
    assert find_recipes() == [mine.relative_to(tmp_path)]


def test_a_file_is_read_and_never_run(tmp_path):
    path = write(
        tmp_path,
        '"""Mine.\n\nMore."""\nimport nowhere\nARGUMENTS: dict = {"": ("a", "b")}\n'
        "raise SystemExit\ndef get_config(arg='x'):\n    ...",
    )
    recipe = read_recipe(path)
    assert (recipe.doc, recipe.arguments, recipe.default) == ("Mine.\n\nMore.", {"": ("a", "b")}, "x")
    assert "More." not in describe(path)
    assert "More." in describe(path, whole=True)
    check_recipe(f"{path}:")
    with pytest.raises(UserError, match=r"mine\.py:y: no argument 'y'; there are ''"):
        check_recipe(f"{path}:y")


def test_without_a_table_any_argument_goes(tmp_path):
    path = write(tmp_path, "from elsewhere import get_config")
    check_recipe(f"{path}:whatever,1")
    assert describe(path) == f"{path}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"mine\.py, line 1: "),
        ("def config():\n    ...", r"mine\.py: not a recipe, it has no function get_config"),
        ("get_config = None\nARGUMENTS = dict(a=1)", r"mine\.py, line 2: ARGUMENTS must be a literal"),
        ("get_config = None\nARGUMENTS = {'a': 'b'}", r"mine\.py, line 2: ARGUMENTS must be a literal"),
        ("get_config = None\nARGUMENTS = {'a': ('b', 3)}", r"ARGUMENTS must be a literal"),
        ("get_config = None\nARGUMENTS = {3: ('b', 'c')}", r"ARGUMENTS must be a literal"),
        ("get_config = None\nARGUMENTS: dict", r"ARGUMENTS must be a literal"),
        ("x = '\0'", r"mine\.py.*null byte"),
    ],
)
def test_what_is_no_recipe_is_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_recipe(path)
    assert "\n" not in str(error.value)
    assert str(error.value) in describe(path)  # help goes on to the others


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pocket", r"--config=pocket: there is no such file \(did you mean configs/pocket\.py\?\); there are configs/"),
        ("config/pocket.py", r"did you mean configs/pocket\.py\?"),
        ("configs/llava_1_5.py", r"did you mean configs/systems/llava_1_5\.py\?"),
        ("configs/systems/svit.py:7b", r"no argument '7b'.*; there are '13b', 'tiny'"),
        ("configs", r"--config=configs: this is a folder; there are configs/"),
        ("zzz", r"--config=zzz: there is no such file; there are"),
        ("README.md", r"README\.md: not a recipe, which is a Python file"),
        ("configs/mini_internvl.py:1b,tun", r"did you mean '1b,tune'\?\); there are '1b,align'"),
    ],
)
def test_a_mistaken_recipe_is_told_with_what_there_is(monkeypatch, given, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        check_recipe(given)


def test_without_any_recipe_it_says_what_one_is(monkeypatch):
    monkeypatch.setattr("vlm_jax.recipe_files.find_recipes", list)
    with pytest.raises(
        UserError, match=r"pocket: there is no such file; a recipe is a Python file with a function get_"
    ):
        check_recipe("pocket")
