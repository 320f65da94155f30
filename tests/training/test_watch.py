"""Questions asked while a run trains: they change nothing, and are asked once, wherever a run is cut off."""

import dataclasses
import io
import json
import struct
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from tests.training.helpers import start
from vlm_jax.config import to_plain
from vlm_jax.errors import UserError
from vlm_jax.evaluation.charts import read_metrics
from vlm_jax.training import stage
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.pictures import GOLD, PARTLY, RIGHT, SIDE, WRONG, Example, draw_example
from vlm_jax.training.stage import StageRunner
from vlm_jax.training.watch import Answers, Watch
from vlm_jax.training.workdir import Workdir, config_differences


class Ask:
    """Reads all parameters, as a model would; remembers their sum whenever it is asked."""

    count = 3

    def __init__(self, then=lambda: None):
        self.asked, self.then = [], then
        file = io.BytesIO()
        Image.new("RGB", (30, 20), (9, 200, 90)).save(file, "PNG")
        self.images = (file.getvalue(),)

    def __call__(self, config, params):
        params = jax.device_put(params, jax.devices()[0])
        total = float(jax.jit(lambda tree: sum(abs(leaf).sum() for leaf in jax.tree.leaves(tree)))(params))
        self.asked.append((config, total))
        self.then()
        examples = [Example("a", f"What is {n}?", "ab", "abc", 0.0, self.images) for n in range(3)]
        return Answers({"a": 0.25, "b": 0.75}, tuple(examples))


def watched(recipe, every):
    evaluation = dataclasses.replace(recipe.evaluation, watch_steps=every)
    return dataclasses.replace(recipe, evaluation=evaluation)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def asked_at(folder):
    return [entry["number"] for entry in lines(folder) if "validation" in entry]


def events(folder, prefix):
    """(tag, step) of all values in the event files whose tag begins so, as TensorBoard reads them."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == event.session_log.START:  # what came later in an earlier file is dropped
                found = [(tag, step) for tag, step in found if step < event.step]
            found += [(value.tag, event.step) for value in event.summary.value if value.tag.startswith(prefix)]
    return found


def assert_bit_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def asked(small, splits, tokenizer, tmp_path_factory):
    folder, ask = tmp_path_factory.mktemp("asked"), Ask()
    return start(watched(small, 4), folder, splits, tokenizer, ask=ask), folder, ask


def test_asking_changes_no_number(asked, unbroken):
    assert_bit_equal(asked[0].params, unbroken[0].params)
    keys = ("stage", "step", "number", "loss", "accuracy", "gradient_norm", "learning_rate", "answers")
    assert [[e.get(k) for k in keys] for e in lines(asked[1])] == [[e.get(k) for k in keys] for e in lines(unbroken[1])]


def test_where_and_whom_it_asks(asked, small):
    """Not in the stage that trains an encoder alone; the last time, all that is exported."""
    trained, folder, ask = asked
    assert asked_at(folder) == [5 + 4, 5 + 6]
    assert [config for config, _ in ask.asked] == [small.models.student] * 2
    total = sum(abs(leaf).sum() for leaf in jax.tree.leaves(jax.device_get(trained.params)))
    assert ask.asked[-1][1] == pytest.approx(float(total), rel=1e-5)
    assert ask.asked[0][1] != ask.asked[1][1]


def test_what_is_written(asked, unbroken):
    trained, folder, _ = asked
    entry = lines(folder)[-1]
    assert entry["validation"]["scores"] == {"a": 0.25, "b": 0.75}
    assert entry["validation"]["mean"] == 0.5
    assert entry["validation"]["of"] == "student"
    metrics = read_metrics(folder / "metrics.jsonl")  # the report's reader
    assert metrics.unreadable == 0
    assert [len(entries) for entries in metrics.stages.values()] == [5, 6]
    assert trained.figures["tune"]["validation_seconds"] >= 0
    assert "validation_seconds" not in trained.figures["distill"]
    steps = [9, 11]
    assert events(folder, "validation/") == [(f"validation/{t}", s) for s in steps for t in ("a", "b", "mean")]
    # Two of three questions are drawn, under the same names each time.
    assert events(folder, "examples") == [(f"examples/a-{n}", s) for s in steps for n in (1, 2)]


def test_its_seconds_are_none_of_the_steps(small, splits, tokenizer, tmp_path, monkeypatch):
    real, ahead = stage.time.monotonic, [0.0]
    monkeypatch.setattr(stage.time, "monotonic", lambda: real() + ahead[0])

    def later():
        ahead[0] += 1000.0

    trained = start(watched(small, 2), tmp_path, splits, tokenizer, ask=Ask(later))
    assert trained.figures["tune"]["validation_seconds"] > 3000.0
    assert trained.figures["tune"]["seconds"] < 1000.0


def test_the_teacher_is_asked_too(small, splits, tokenizer, tmp_path):
    teach = dataclasses.replace(
        small.stages[1],
        steps=2,
        objective=dataclasses.replace(small.stages[1].objective, model="teacher"),
        trainable=("teacher/**", "decoder/**"),
    )
    ask = Ask()
    start(dataclasses.replace(small, stages=(teach,)), tmp_path, splits, tokenizer, ask=ask)
    assert [config for config, _ in ask.asked] == [small.models.teacher_vlm]
    assert {tag for tag, _ in events(tmp_path, "validation")} == {f"validation-teacher/{t}" for t in ("a", "b", "mean")}


@pytest.mark.parametrize(("at", "moment"), [(9, "before"), (9, "after"), (11, "while"), (11, "after")])
def test_cut_off_around_a_question_it_is_asked_once(
    small, splits, tokenizer, unbroken, tmp_path, monkeypatch, at, moment
):
    """Cut off by a signal before or while it is asked, or killed right after, with a checkpoint at that step."""
    interrupt, killed = Interrupt(), []
    step = at - 5

    def signal():
        interrupt.requested |= moment == "while" and len(ask.asked) == (1 if at == 9 else 2)

    ask = Ask(signal)
    add, look = stage.Meter.add, StageRunner._look

    def before(self, number, metrics):
        add(self, number, metrics)
        interrupt.requested |= moment == "before" and self._before + number == at

    def after(self, meter, state, untouched, number):
        look(self, meter, state, untouched, number)
        if moment == "after" and self.before + number == at:
            self.checkpoints.finish()
            killed.append(number)
            raise SystemExit("killed")

    recipe = watched(small, 4)
    with monkeypatch.context() as patch:
        patch.setattr(stage.Meter, "add", before)
        patch.setattr(StageRunner, "_look", after)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            start(recipe, tmp_path, splits, tokenizer, interrupt, ask=ask)
    assert killed == ([step] if moment == "after" else [])
    again = Ask()
    trained = start(recipe, tmp_path, splits, tokenizer, ask=again)
    assert_bit_equal(trained.params, unbroken[0].params)
    assert asked_at(tmp_path) == [9, 11]
    assert len(ask.asked) + len(again.asked) == 2
    assert [entry["number"] for entry in lines(tmp_path)] == list(range(1, 12))
    assert events(tmp_path, "validation/a") == [("validation/a", 9), ("validation/a", 11)]
    assert trained.figures["tune"]["validation_seconds"] >= 0


def test_what_cannot_be_asked_ends_no_training(small, splits, tokenizer, unbroken, tmp_path, capsys):
    def gone():
        raise UserError("p.png: no such file")

    trained = start(small, tmp_path, splits, tokenizer, ask=Ask(gone))
    assert_bit_equal(trained.params, unbroken[0].params)
    assert "stage tune: the validation questions were not asked: p.png: no such file" in capsys.readouterr().out
    assert asked_at(tmp_path) == []


def test_a_device_that_is_full_ends_no_training_and_a_defect_does(small, capsys):
    def ask(error):
        def refuse():
            raise error

        parts = {part: {} for part in ("vision", "connector", "decoder")}
        Watch(Ask(refuse), 0, log=None).ask(small.stages[1], small.models, parts, 6, 11)

    ask(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes."))
    assert "stage tune: the validation questions were not asked: the device lacks the memory" in capsys.readouterr().out
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ask(jax.errors.JaxRuntimeError("INTERNAL: something broke"))


def test_it_may_be_asked_otherwise_when_a_run_is_continued(small):
    before = to_plain(small)
    assert config_differences(before, to_plain(watched(small, 7))) == []
    del before["evaluation"]["watch"], before["evaluation"]["watch_steps"]  # a run of a version that never asked
    assert config_differences(before, to_plain(small)) == []


def test_a_run_from_before_a_field_was_there_can_be_continued(small, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    workdir.open(small)
    before = json.loads(workdir.config.read_text())
    del before["system"]["model"]["vision"]["position_waves"], before["evaluation"]["watch"]
    workdir.config.write_text(json.dumps(before))
    monkeypatch.setattr("vlm_jax.training.workdir.complete", lambda folder: [5])  # it has a checkpoint
    assert workdir.open(small)
    before["colour"], before["seed"] = "red", 7
    workdir.config.write_text(json.dumps(before))
    with pytest.raises(UserError, match=r"config\.colour was 'red', is 'absent'; config\.seed was 7, is 0"):
        workdir.open(small)


def png(width, height, colour=(240, 240, 240)):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def has(picture, colour):
    return (np.abs(picture.astype(int) - colour).sum(axis=-1) < 12).any()


def test_a_picture_tells_right_from_wrong_and_shows_boxes():
    said = {0.0: WRONG, 0.4: PARTLY, 1.0: RIGHT}
    for score, colour in said.items():
        picture = draw_example(Example("a", "What?", "yes", "no", score, (png(40, 40),)))
        assert picture.dtype == np.uint8
        assert [has(picture, other) for other in said.values()] == [other == colour for other in said.values()]
    text = "[[100, 100, 400, 500]]"
    wild = Example("point", "Where?", text, "[[900, 990, -700, 4000]]", 0.0, (png(40, 40),))
    picture = draw_example(wild)[:SIDE]
    assert has(picture, GOLD)
    assert has(picture, WRONG)
    assert not has(draw_example(wild._replace(answer="7", prediction="8"))[:SIDE], GOLD)


def test_an_essay_without_spaces_is_cut_at_once():
    began = time.process_time()
    draw_example(Example("a", "Q?", "读" * 20_000, "x" * 20_000, 0.0, (png(400, 300),)))
    assert time.process_time() - began < 3.0  # 200 if its end were looked for letter by letter


@pytest.mark.parametrize(
    "images", [(), (png(1, 1),), (png(3000, 20),), (png(20, 3000),), (png(64, 64), png(200, 100), png(500, 500))]
)
def test_pictures_of_any_shape_and_text(images):
    short = draw_example(Example("a", "Q?", "a", "", 0.0, images))
    long = draw_example(Example("a", "Q?", "a", "word \x1b[31m" * 200 + "x" * 900, 0.0, images))
    assert short.shape == long.shape  # so that they lie upon each other
    assert max(short.shape) < 2000
