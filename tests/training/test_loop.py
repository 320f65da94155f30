"""The loop on an in-memory source: cut off and continued runs end with the same bits."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from tests.training.helpers import Memory, start
from vlm_jax.checkpoints import complete, read_params
from vlm_jax.config import build, to_plain
from vlm_jax.data.conversation import Turn
from vlm_jax.errors import UserError
from vlm_jax.sharding import MeshConfig, make_mesh
from vlm_jax.training import loop, stage
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.workdir import Workdir


def assert_bit_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def numbers(folder):
    return [json.loads(line)["number"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_parts_that_are_no_longer_needed_are_dropped(unbroken):
    trained, folder = unbroken
    assert set(trained.params) == {"vision", "connector", "decoder"}
    numbers = complete(folder / "checkpoints")
    assert {5, 11} <= set(numbers)  # the ends of the stages
    assert set(read_params(folder / "checkpoints", 5)[0]) >= {"teacher", "distillation"}


@pytest.mark.parametrize("cut", [2, 5, 8])
def test_interrupted_and_continued_is_bit_equal(small, splits, tokenizer, unbroken, tmp_path, monkeypatch, cut, capsys):
    interrupt = Interrupt()
    add = stage.Meter.add

    def request(self, step, metrics):
        add(self, step, metrics)
        interrupt.requested |= self._before + step == cut

    monkeypatch.setattr(stage.Meter, "add", request)
    with pytest.raises(KeyboardInterrupt):
        start(small, tmp_path, splits, tokenizer, interrupt)
    assert max(complete(tmp_path / "checkpoints")) == cut
    monkeypatch.setattr(stage.Meter, "add", add)
    trained = start(small, tmp_path, splits, tokenizer)
    assert f"continuing from checkpoint {cut}" in capsys.readouterr().out
    assert_bit_equal(trained.params, unbroken[0].params)
    assert numbers(tmp_path) == numbers(unbroken[1]) == list(range(1, 12))  # a line at every checkpoint, without holes
    keys = ("steps", "answers_seen", "tokens_seen", "tiles_seen")
    for name, figures in trained.figures.items():
        assert {key: figures[key] for key in keys} == {key: unbroken[0].figures[name][key] for key in keys}


def test_data_that_changed_meanwhile_is_refused(small, splits, tokenizer, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[1], folder)
    last = max(complete(folder / "checkpoints"))
    (path,) = (path for path in (folder / "checkpoints").iterdir() if path.name.lstrip("0") == str(last))
    shutil.rmtree(path)
    first = splits.train[0]
    longer = dataclasses.replace(first, turns=(first.turns[0], Turn("assistant", "abababab")))
    changed = Splits(Memory([longer, *splits.train[1:]]))
    with pytest.raises(UserError, match=r"stage tune: the data is not what it was when step \d was saved"):
        start(small, folder, changed, tokenizer)
    start(small, folder, splits, tokenizer)


@pytest.mark.parametrize("same", [True, False])
def test_hosts_that_see_other_data_are_refused(small, splits, tokenizer, monkeypatch, same):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    runner = stage.StageRunner(small, 1, splits, tokenizer, mesh, *[None] * 5)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: np.stack([own, own if same else own + 1]))
    with (
        contextlib.nullcontext() if same else pytest.raises(UserError, match="tune: the hosts do not see the same data")
    ):
        runner._batches(loop.Progress())


def test_bad_records_are_listed_and_too_many_end_the_run(small, splits, tokenizer, tmp_path, capsys):
    stages = tuple(dataclasses.replace(stage, steps=5) for stage in small.stages[1:])
    recipe = dataclasses.replace(small, stages=stages, max_bad=0.06)

    def cut(number, keep):
        record = splits.train[number]
        return dataclasses.replace(record, images=(record.images[0][:keep],))

    def run(folder, *bad):
        records = Memory(splits.train)
        for record in bad:
            records[int(record.id[1:])] = record
        trained = start(recipe, tmp_path / folder, Splits(records), tokenizer)
        listed = (tmp_path / folder / "quarantine.jsonl").read_text().splitlines()
        return trained, [json.loads(line) for line in listed]

    # One shows when records are measured, the other when it is decoded, in the one epoch that there is.
    trained, rows = run("two", cut(3, 20), cut(7, -100))
    assert [(row["line"], row["reason"]) for row in rows] == [("r3", "image"), ("r7", "image")]
    assert "1 of 40 records are bad" in capsys.readouterr().out
    assert trained.figures["tune"]["steps"] == 5
    with pytest.raises(UserError, match=r"3 of 40 records are bad .*config\.max_bad.*quarantine\.jsonl"):
        run("three", cut(3, 20), cut(7, -100), cut(9, -100))
    assert len((tmp_path / "three" / "quarantine.jsonl").read_text().splitlines()) == 3


def test_a_source_with_nothing_left_ends_the_run_and_is_listed(small, splits, tokenizer, tmp_path):
    bad = [dataclasses.replace(record, images=(b"",)) for record in splits.train]
    recipe = dataclasses.replace(small, max_bad=1.0)
    message = r"none of its 40 record\(s\) can be used; .*40 of 40 records are bad .*empty file 40.*quarantine\.jsonl"
    with pytest.raises(UserError, match=message):
        start(recipe, tmp_path, Splits(Memory(bad)), tokenizer)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 40
    (tmp_path / "quarantine.jsonl").unlink()
    cut = [dataclasses.replace(record, images=(record.images[0][:-100],)) for record in splits.train]
    with pytest.raises(UserError, match=r"no record is left that can be used \(image 40\)"):  # seen when it is loaded
        start(recipe, tmp_path, Splits(Memory(cut)), tokenizer)
    (tmp_path / "quarantine.jsonl").unlink()
    stages = tuple(dataclasses.replace(stage, steps=0, epochs=1.0) for stage in small.stages)
    recipe, spoiled = dataclasses.replace(recipe, stages=stages), Splits(Memory(bad))
    quarantine = loop.open_quarantine(recipe, Workdir(tmp_path), spoiled)
    with pytest.raises(UserError, match=message):
        loop.with_steps(recipe, spoiled, tokenizer, quarantine, True)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 40


def test_an_interrupt_saves_when_no_save_is_due(small, splits, tokenizer, tmp_path, monkeypatch):
    interrupt = Interrupt()
    add = stage.Meter.add

    def request(self, step, metrics):
        add(self, step, metrics)
        interrupt.requested |= step == 2

    monkeypatch.setattr(stage.Meter, "add", request)
    seldom = dataclasses.replace(small, runtime=dataclasses.replace(small.runtime, checkpoint_seconds=1e9))
    with pytest.raises(KeyboardInterrupt):
        start(seldom, tmp_path, splits, tokenizer, interrupt)
    assert complete(tmp_path / "checkpoints") == [2]


def test_killed_while_saving_is_bit_equal(small, splits, tokenizer, unbroken, tmp_path, monkeypatch):
    """The newest checkpoint has no manifest yet, and its step's metrics are written."""
    finish_one = loop.Checkpoints._complete

    def die(self, path):
        if path.name == "00000007":
            self._saver.wait_until_finished()  # a real kill ends its threads; here they would write on
            self._optimizer_saver.wait_until_finished()
            raise SystemExit("killed")
        finish_one(self, path)

    monkeypatch.setattr(loop.Checkpoints, "_complete", die)
    with pytest.raises(SystemExit):
        start(small, tmp_path, splits, tokenizer)
    monkeypatch.setattr(loop.Checkpoints, "_complete", finish_one)
    assert (tmp_path / "checkpoints" / "00000007").is_dir()
    assert max(complete(tmp_path / "checkpoints")) == 6
    assert_bit_equal(start(small, tmp_path, splits, tokenizer).params, unbroken[0].params)


def test_another_mesh_may_continue(small, splits, tokenizer, unbroken, tmp_path):
    """The last stage again, from the checkpoint at the end of the first, on other devices."""
    numbers = [n for n in complete(unbroken[1] / "checkpoints") if n > 5]
    shutil.copytree(unbroken[1], tmp_path, dirs_exist_ok=True)
    for number in numbers:
        shutil.rmtree(tmp_path / "checkpoints" / f"{number:08d}")
    trained = start(small, tmp_path, splits, tokenizer, devices=2, mesh=MeshConfig(fsdp=2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        jax.device_get(trained.params),
        jax.device_get(unbroken[0].params),
    )


def test_before_the_first_checkpoint_another_config_may_have_the_folder(small, tmp_path):
    workdir = Workdir(tmp_path)
    assert not workdir.open(small)
    workdir.tokenizer.mkdir()
    assert workdir.open(build(Recipe, {**to_plain(small), "seed": 1}))
    assert json.loads(workdir.config.read_text())["seed"] == 1
    assert not workdir.tokenizer.exists()  # it may depend on what has changed


def test_one_process_at_a_time(tmp_path):
    with (
        Workdir(tmp_path / "w").locked(),
        pytest.raises(UserError, match="another process is running in it"),
        Workdir(tmp_path / "w").locked(),
    ):
        pass
    with Workdir(tmp_path / "w").locked():
        pass


def test_mistakes_in_later_stages_show_before_training(small, splits, tokenizer, tmp_path):
    def refused(message, devices=1, **change):
        stages = (small.stages[0], dataclasses.replace(small.stages[1], **change))
        with pytest.raises(UserError, match=message):
            start(dataclasses.replace(small, stages=stages), tmp_path / message[:4], splits, tokenizer, devices=devices)

    data = small.stages[1].data
    refused(r"stages 'tune': trainable: no parameter matches visoin/\*\*", trainable=("visoin/**", "decoder/**"))
    refused(
        r"stages\[1\]\.data: 2 of 40 records .*memory:16: does not fit a row", data=dataclasses.replace(data, tokens=40)
    )
    refused(r"stages\[1\]\.data: .*no task b", data=dataclasses.replace(data, weights={"b": 1.0}))
    refused(r"stages\[1\]\.data\.rows: 6 rows", devices=4, data=dataclasses.replace(data, rows=6))
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_a_loss_that_is_not_finite_stops_the_run(small, splits, tokenizer, tmp_path):
    wild = dataclasses.replace(small.stages[1].optimizer, learning_rate=1e30, warmup_ratio=0.0)
    stages = (small.stages[0], dataclasses.replace(small.stages[1], optimizer=wild))
    with pytest.raises(UserError, match=r"stage tune, step \d: the loss is (nan|inf)"):
        start(dataclasses.replace(small, stages=stages), tmp_path, splits, tokenizer)
    params = read_params(tmp_path / "checkpoints")[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_stage_that_trains_all_it_reads_keeps_the_rest(small, splits, tokenizer, tmp_path):
    stages = (dataclasses.replace(small.stages[1], steps=1), dataclasses.replace(small.stages[0], steps=1))
    trained = start(dataclasses.replace(small, stages=stages), tmp_path, splits, tokenizer)
    assert set(trained.params) >= {"vision", "teacher", "distillation", "decoder"}


def test_other_numbers_are_refused_naming_the_fields(small, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.open(small)
    (workdir.checkpoints / "00000001").mkdir(parents=True)
    (workdir.checkpoints / "00000001" / "manifest.json").touch()
    other_runtime = {**to_plain(small), "runtime": dict(workers=2)}
    Workdir(tmp_path).open(build(Recipe, other_runtime))
    fields = {**other_runtime, "seed": 1}
    fields["stages"][1]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(UserError) as error:
        Workdir(tmp_path).open(build(Recipe, fields))
    message = str(error.value)
    assert "config.seed was 0, is 1" in message
    assert "config.stages[1].optimizer.learning_rate was 0.01, is 0.5" in message
    assert "runtime" not in message


@pytest.mark.parametrize(
    ("of_recipe", "of_stage", "message"),
    [
        ({"seed": -1}, {}, r"config\.seed: must be at least 0, got -1"),
        ({}, {"steps": 0, "epochs": float("inf")}, r"epochs must be finite, got inf"),
    ],
)
def test_numbers_that_no_plan_is_made_of(small, of_recipe, of_stage, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(small, stages=(dataclasses.replace(small.stages[0], **of_stage),), **of_recipe)
