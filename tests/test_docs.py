"""The documents say what the code does: tables, links, commands."""

import ast
import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from vlm_jax.overrides import missing_field, new_types, with_types
from vlm_jax.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("launch/*.md"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def script(name: str):
    """A script of `docs/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_shapes_are_those_of_the_code():
    shapes = script("shapes")
    document = text("docs/architecture.md")
    assert document.count("<!-- shapes: ") == len(shapes.TABLES)
    assert shapes.with_tables(document) == document, "run `python docs/shapes.py --write`"


def test_systems_are_those_of_the_configs():
    systems = script("systems")
    assert text("docs/systems.md") == systems.document(), "run `python docs/systems.py --write`"
    assert len(systems.systems()) == 1 + len(list((ROOT / "configs" / "systems").glob("*.py")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_has_the_two_commands():
    readme = text("README.md")
    first = "pip install -e . && python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/pocket"
    assert readme.index(first) < readme.index("pip install -e '.[test]' && pytest")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_paths_exist(page):
    content = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (vlm_jax[\w.]*)", content))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    paths = set(re.findall(r"`((?:vlm_jax|configs|tests|docs|launch)/[\w/.]+\.\w+)`", content))
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_that_commands_set_are_there(page):
    """Of `python -m vlm_jax.main --config=FILE --config.FIELD=VALUE`: that the recipe has the field."""
    commands = re.findall(r"^python -m vlm_jax\.main ((?:.*\\\n)*.*)$", page.read_text(encoding="utf-8"), re.M)
    for words in map(shlex.split, commands):
        (given,) = (word.removeprefix("--config=") for word in words if word.startswith("--config="))
        file, _, argument = given.partition(":")
        if "NAME" in file:
            continue
        config = runpy.run_path(str(ROOT / file))["get_config"](*([argument] if argument else []))
        config = with_types(Recipe, config, new_types(words))
        for word in words:
            if word.startswith("--config."):
                path = word.removeprefix("--").partition("=")[0]
                assert missing_field(config, path) == "", word


def test_places_named_in_the_table_of_steps_exist():
    places = re.findall(r"\| `(\w+(?:/\w+)+\.py)`, `(\w+)", text("docs/architecture.md"))
    assert len(places) >= 14
    for file, name in places:
        tree = ast.parse(text(f"vlm_jax/{file}"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, file


def test_batch_table_names_every_field():
    from vlm_jax.batch import Batch

    table = text("docs/architecture.md").split("## The batch")[1].split("##")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert named == list(Batch._fields)


def test_notebook_is_clean():
    notebook = json.loads(text("notebooks/pocket.ipynb"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell["id"]
        assert not cell.get("outputs"), "clear the outputs before committing"
