"""`docs/pocket_data.md` says and shows what the code does."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.pocket import canvas, documents, points
from vlm_jax.data.pocket.__main__ import main
from vlm_jax.data.pocket.material import GUARD, PHOTOGRAPHS, SHORTER_SIDE, WORDS
from vlm_jax.data.pocket.presets import PRESETS
from vlm_jax.data.pocket.scene import CURRICULUM, TASKS

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "pocket_data.md").read_text(encoding="utf-8")
HINT = "run `python docs/pocket_tables.py --write`"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("pocket_tables", ROOT / "docs" / "pocket_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_that_need_no_picture_are_those_of_the_code(tables):
    assert set(re.findall(r"<!-- table: (\w+) -->", DOCUMENT)) == set(tables.QUICK | tables.DRAWN)
    assert tables.with_tables(DOCUMENT, tables.QUICK) == DOCUMENT, HINT


@pytest.mark.slow
def test_tables_of_the_test_pictures_are_those_of_the_code(tables):
    assert tables.with_tables(DOCUMENT, tables.DRAWN) == DOCUMENT, HINT


@pytest.mark.slow
def test_pictures_are_those_of_the_command(tmp_path):
    main(["--examples", f"--out={tmp_path}"])
    for task in TASKS:
        name = f"pocket_{task}.png"
        shown = [Image.open(folder / name).convert("RGB") for folder in (ROOT / "docs" / "images", tmp_path)]
        message = f"{name}: run `python -m vlm_jax.data.pocket --examples --out=docs/images`"
        np.testing.assert_array_equal(*map(np.asarray, shown), err_msg=message)


def test_the_presets_that_are_said_to_ask_the_same_do():
    """A record comes from the seed, its split, task and number; that leaves how many there are."""
    default, large = (PRESETS[name].records for name in ("default", "large"))
    assert [default[split] for split in ("validation", "test")] == [large[split] for split in ("validation", "test")]
    assert all(large["train"][task] > count for task, count in default["train"].items())


def test_every_task_is_described_and_shown():
    for task in TASKS:
        assert f"**`{task}`**" in DOCUMENT
        assert f"](images/pocket_{task}.png)" in DOCUMENT
        assert (ROOT / "docs" / "images" / f"pocket_{task}.png").stat().st_size < 150_000
    assert all(f"`{task}`" in DOCUMENT for task in CURRICULUM)


def test_figures_in_the_prose():
    names = {6: "six", 8: "eight"}
    forms = len(documents.CHOICES["Day"]) * len(documents.CHOICES["Size"]) * len(documents.CHOICES["Status"])
    figures = (
        f"{len(PHOTOGRAPHS)} photographs", f"{WORDS} words", f"{SHORTER_SIDE} pixels on its shorter side",
        f"{names[len(canvas.FONTS)]} fonts", f"{names[len(points.SHAPES)]} shapes", f"of which there are {forms}",
        f"{names[GUARD].capitalize()} pixels between cells", "1797 images", "there are only 504 of its kind",
        f"at least {documents.SMALLEST_CAPITAL:.0f} pixels high",
    )  # fmt: skip
    flat = " ".join(DOCUMENT.split())
    assert [figure for figure in figures if figure not in flat] == []
