"""Runs that begin with folders, by the recipes of `configs/mini_internvl.py` at the size of `tests/tiny.py`."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import vlm_jax.run
from tests import tiny
from tests.meta_fixture import write_meta
from vlm_jax import globs
from vlm_jax.checkpoints import read_params
from vlm_jax.config import build, to_plain
from vlm_jax.convert.folders import read_folder, write_folder
from vlm_jax.convert.workdirs import open_model, write_workdir
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.main import parse
from vlm_jax.models.vlm import init_params
from vlm_jax.run import run
from vlm_jax.start import open_start
from vlm_jax.system import System
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.workdir import Workdir

SMALL = (
    "--config.stages[0].data.rows=8",
    "--config.stages[0].data.tokens=256",
    "--config.stages[0].data.tiles=8",
    "--config.compute.dtype=float32",
    "--config.compute.remat=none",
    "--config.runtime.mesh.data=8",
    "--config.runtime.mesh.fsdp=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A released model."""
    folder = tmp_path_factory.mktemp("released") / "internvl"
    write_folder(folder, tiny.params(), tiny.system(), tiny.tokenizer(), layout="internvl")
    return folder


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return write_meta(tmp_path_factory.mktemp("data"), scale=0.1)


def recipe(name: str, folder, meta, *overrides: str) -> Recipe:
    flags = [
        f"--config=configs/mini_internvl.py:{name}",
        f"--config.start.model={folder}",
        f"--config.data.train={meta}",
    ]
    return build(Recipe, parse([*flags, "--workdir=x", *SMALL, *overrides])[0])


@pytest.fixture(scope="module")
def aligned(folder, meta, tmp_path_factory):
    """The workdir of the first stage, two steps of it."""
    workdir = tmp_path_factory.mktemp("run") / "align"
    # The published warm-up begins with a rate of 0.
    steps = ("--config.stages[0].steps=2", "--config.stages[0].optimizer.warmup_steps=1")
    report = run(recipe("1b,align", folder, meta, *steps), workdir)
    assert report["tasks"] == {}
    return workdir


def test_align_moves_the_connector_alone(aligned, folder):
    before, after = globs.flatten(tiny.params()), globs.flatten(read_params(aligned / "checkpoints")[0])
    assert before.keys() == after.keys()
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if path.startswith("connector/")}
    assert open_model(aligned).system == tiny.system()
    assert read_folder(aligned / "export").tokenizer.to_json() == tiny.tokenizer().to_json()
    assert "curves" in (aligned / "report.html").read_text() or (aligned / "report.json").is_file()


def test_it_goes_on_without_the_folders(aligned, folder, meta, tmp_path):
    """A checkpoint holds all that came from them: the system too."""
    workdir = shutil.copytree(aligned, tmp_path / "align")
    (workdir / "report.json").unlink()
    steps = ("--config.stages[0].steps=2", "--config.stages[0].optimizer.warmup_steps=1")
    report = run(recipe("1b,align", tmp_path / "gone", meta, *steps), workdir)
    assert report["stages"]["align"]["steps"] == 2


@pytest.mark.slow
def test_tune_goes_on_from_align(aligned, meta, tmp_path):
    """One epoch of the 2B's second stage, one conversation a row, with everything moving."""
    report = run(recipe("2b,tune", aligned, meta), tmp_path / "tune")
    # 8 captions, 16 pages, 8 pairs and 4 of talk are 36 conversations: 5 batches of at most 8.
    assert report["stages"]["tune"]["steps"] == 5
    before = globs.flatten(read_params(aligned / "checkpoints")[0])
    after = globs.flatten(read_params(tmp_path / "tune/checkpoints")[0])
    assert all(not np.array_equal(before[path], after[path]) for path in before)
    assert all(np.abs(before[path] - after[path]).max() < 1e-3 for path in before)
    first = json.loads((tmp_path / "tune/metrics.jsonl").read_text().splitlines()[0])
    assert first["learning_rate"] == 0.0  # of a warm-up over ceil(0.03 * 5) steps


def test_another_start_brings_its_tokenizer(folder, meta, tmp_path, monkeypatch):
    """As long as nothing is trained, a second attempt may begin with another folder."""
    words = Tokenizer.train(["quite another text, of other words entirely, over and over"] * 4, 330)
    write_folder(tmp_path / "other", tiny.params(), tiny.system(), words)
    seen = []

    def stop(recipe, workdir, splits, tokenizer, *rest):
        seen.append((tokenizer.to_json(), Tokenizer.load(workdir.tokenizer).to_json()))
        raise UserError("stopped before the first checkpoint")

    monkeypatch.setattr(vlm_jax.run, "train", stop)
    steps = ("--config.stages[0].steps=1", "--config.stages[0].optimizer.warmup_steps=1")
    for start in (folder, tmp_path / "other"):
        with pytest.raises(UserError, match="stopped"):
            run(recipe("1b,align", start, meta, *steps), tmp_path / "run")
    assert seen == [(tiny.tokenizer().to_json(),) * 2, (words.to_json(),) * 2]


def test_a_tower_that_transformers_lacks(meta, tmp_path, capsys):
    """No export, which is said before the training, and all else as ever."""
    vision = {"type": "vision_transformer", **tiny.system_fields()["model"]["vision"]}
    vision |= {"class_token": False, "layer_scale": None, "final_norm": True, "activation": "gelu_tanh"}
    fields = tiny.system_fields()
    system = build(System, {**fields, "model": {**fields["model"], "vision": vision}})
    write_workdir(tmp_path / "start", init_params(system.model, jax.random.key(0)), system, tiny.tokenizer())
    steps = ("--config.stages[0].steps=1", "--config.stages[0].optimizer.warmup_steps=1")
    assert run(recipe("1b,align", tmp_path / "start", meta, *steps), tmp_path / "run")["stages"]["align"]["steps"] == 1
    said = capsys.readouterr()
    said = said.out + said.err
    assert said.index("no export/ will be written") < said.index("stage align")
    assert not (tmp_path / "run/export").exists()
    assert open_model(tmp_path / "run").system == system


def test_a_tokenizer_without_the_token_that_ends_a_turn(meta, tmp_path):
    """Is found before the training, not after it."""
    content = json.loads(tiny.tokenizer().to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_end|>"]
    write_workdir(tmp_path / "start", tiny.params(), tiny.system(), Tokenizer._from_json(json.dumps(content), {}))
    with pytest.raises(UserError, match=r"no token '<\|im_end\|>'"):
        run(recipe("1b,align", tmp_path / "start", meta), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_recipe_with_another_system_is_refused(folder, meta, tmp_path):
    with_system = dataclasses.replace(recipe("1b,align", folder, meta), system=tiny.system())
    completed, opened = open_start(with_system, Workdir(tmp_path / "x"))
    assert completed == with_system
    assert opened.system == tiny.system()
    plain = to_plain(tiny.system())
    plain["model"]["decoder"]["depth"] = 3
    plain["model"]["vision"]["drop_path"] = 0.3
    other = build(Recipe, {**to_plain(with_system), "system": plain})
    with pytest.raises(
        UserError, match=r"another model than config\.system\.model: decoder\.depth is 3, the folder's 2\."
    ):
        open_start(other, Workdir(tmp_path / "x"))


def test_folders_must_be_named(meta, tmp_path):
    for flags in (
        [],
        ["--config.start.vision=a"],
        ["--config.start.model=a", "--config.start.vision=a", "--config.start.decoder=b"],
    ):
        config = parse(["--config=configs/mini_internvl.py:1b,align", "--workdir=x", *flags])[0]
        with pytest.raises(UserError, match="give the folder of a model"):
            run(build(Recipe, config), tmp_path / "run")
    missing = recipe("1b,align", tmp_path / "nowhere", meta)
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        run(missing, tmp_path / "run")


def test_published_settings(folder, meta):
    """Section 1.12 of the facts, by hand."""
    expected = {
        # trained, rate, decay, drop path, rows, tokens
        "1b,align": (["connector/**"], 2e-4, 0.01, 0.0, 512, 16384),
        "2b,align": (["vision/**", "connector/**"], 2e-5, 0.01, 0.1, 2048, 4096),
        "4b,align": (["connector/**"], 2e-4, 0.05, 0.0, 2048, 4096),
        "1b,tune": (["**"], 4e-5, 0.01, 0.1, 512, 16384),
        "2b,tune": (["**"], 4e-5, 0.01, 0.1, 1024, 8192),
        "4b,tune": (["**"], 4e-5, 0.05, 0.1, 1024, 8192),
    }
    for name, values in expected.items():
        stage = build(Recipe, parse([f"--config=configs/mini_internvl.py:{name}", "--workdir=x"])[0]).stages[0]
        optimizer = stage.optimizer
        found = (list(stage.trainable), optimizer.learning_rate, optimizer.weight_decay, stage.drop_path)
        assert (*found, stage.data.rows, stage.data.tokens) == values
        assert (optimizer.type, optimizer.b1, optimizer.b2, optimizer.eps) == ("adamw", 0.9, 0.999, 1e-8)
        assert (optimizer.schedule, optimizer.final_ratio, optimizer.clip_norm) == ("cosine", 0.0, 1.0)
        warmup = (100, None) if "align" in name else (0, 0.03)
        assert optimizer.warmup_steps == warmup[0]
        assert warmup[1] in (None, optimizer.warmup_ratio)


def test_drop_path_is_the_stages_own(folder, meta):
    from vlm_jax.training.step import Step

    made, _ = open_start(recipe("1b,align", folder, meta), Workdir("nowhere"))
    assert made.system.model.vision.drop_path == 0.1
    assert Step.of(made.stages[0], made.models).models.student.vision.drop_path == 0.0
    assert jax.tree.leaves(made.stages[0].drop_path) == [0.0]
