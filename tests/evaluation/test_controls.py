import collections
import dataclasses
import io
import time
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_jax.config import flatten
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.errors import UserError
from vlm_jax.evaluation import controls, runner
from vlm_jax.evaluation.benchmarks import Question, pocket
from vlm_jax.training.recipe import MAY_CHANGE, EvaluationConfig


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data):
    return np.asarray(decode_image(data, "test"))


def picture(number, height=9, width=12):
    """Grey levels in which the number can be read: the place, in raster order, of the one white pixel."""
    values = np.random.default_rng(number).integers(0, 200, (height, width, 3))
    values.reshape(-1, 3)[number] = 255
    return png(values)


def question(number, gold, images, task="digits"):
    turns = (Turn("user", "<image>" * len(images) + "Which?"),)
    return Question(f"{task}-{number}", task, Conversation(turns, tuple(images), id=f"{task}-{number}"), (gold,))


def of(answers, task="digits"):
    """Questions with pictures that all differ, and these gold answers."""
    return [question(i, str(gold), [picture(i)], task) for i, gold in enumerate(answers)]


def all_pictures(control, questions, seed=0):
    made = controls.CONTROLS[control](questions, seed)
    return [made(number) for number in range(len(questions))]


def reader(conversations):
    """Says where the white pixel is, modulo 10: reads the picture without a mistake, and nothing else."""
    return [str(int(pixels(c.images[0]).reshape(-1, 3).sum(axis=1).argmax()) % 10) for c in conversations]


def deaf(conversations):
    """Answers from the id, whatever the picture is."""
    return [str(int(c.id.split("-")[1]) % 10) for c in conversations]


@pytest.fixture(scope="module")
def readable():
    numbers = np.random.default_rng(3).permutation(100)
    return pocket(
        [
            Conversation(
                (Turn("user", "<image>Which?"), Turn("assistant", str(n % 10))), (picture(n),), f"x-{n}", "digits"
            )
            for n in numbers.tolist()
        ]
    )


def test_a_model_that_reads_its_picture_falls_to_chance_under_every_control(readable):
    score = runner.evaluate(reader, readable, controls=tuple(controls.CONTROLS)).tasks["digits"]
    assert score.value == 1.0
    assert score.controls["blank"] == pytest.approx(0.1)  # it sees nothing brightest and says 0
    assert score.controls["shuffled"] == pytest.approx(0.1, abs=0.08)
    assert score.controls["wrong"] == 0.0  # it reads another picture, which is never one of the same answer


def test_a_model_that_ignores_its_picture_scores_the_same_under_every_control(readable):
    score = runner.evaluate(deaf, readable, controls=tuple(controls.CONTROLS)).tasks["digits"]
    assert score.value == 1.0
    assert score.controls == {"blank": 1.0, "shuffled": 1.0, "wrong": 1.0}


def test_rows_and_report_hold_the_controls_that_were_asked_for(readable):
    result = runner.evaluate(reader, readable, controls=("wrong", "shuffled"))
    row, task = result.rows[0], result.report()["digits"]
    assert row["blank_prediction"] is None
    assert row["blank_score"] is None
    assert row["wrong_prediction"] not in (None, row["prediction"])
    assert row["shuffled_score"] in (0.0, 1.0)
    assert set(task["baselines"]) == {"majority", "blank"}
    assert task["baselines"]["blank"] is None
    assert task["controls"] == {
        name: np.mean([row[f"{name}_score"] for row in result.rows]) for name in ("wrong", "shuffled")
    }
    assert "controls" not in runner.evaluate(reader, readable).report()["digits"]
    assert "wrong_score" not in runner.evaluate(reader, readable).rows[0]


def test_a_blank_picture_is_one_colour_of_the_same_size():
    ((blank,),) = all_pictures("blank", of("1"))
    assert pixels(blank).shape == (9, 12, 3)
    assert len(np.unique(pixels(blank).reshape(-1, 3), axis=0)) == 1


def test_a_shuffled_picture_has_the_same_pixels_in_other_places():
    questions = [question(i, "1", [picture(i, 20, 31), picture(i, 5, 7)]) for i in range(3)]
    for asked, shuffled in zip(questions, all_pictures("shuffled", questions), strict=True):
        for before, after in zip(map(pixels, asked.conversation.images), map(pixels, shuffled), strict=True):
            assert before.shape == after.shape
            assert (before != after).any(axis=2).mean() > 0.9
            assert collections.Counter(map(bytes, before.reshape(-1, 3))) == collections.Counter(
                map(bytes, after.reshape(-1, 3))
            )
    same = all_pictures("shuffled", [question(0, "1", [picture(0)] * 2), question(1, "1", [picture(0)])])
    assert len({same[0][0], same[0][1], same[1][0]}) == 3
    first, second = (pixels(pictures[1]) for pictures in all_pictures("shuffled", [questions[0]] * 2))
    assert (first == second).all()  # by seed and id, not by when it is asked
    assert (pixels(all_pictures("shuffled", questions, seed=1)[0][1]) != first).any()


def test_a_large_picture_is_shuffled_in_blocks_and_none_stays():
    height, width = 1025, 700
    numbered = np.arange(height * width).reshape(height, width)
    image = png(np.stack([numbered >> 16, (numbered >> 8) & 255, numbered & 255], axis=2))
    ((shuffled,),) = all_pictures("shuffled", [question(0, "1", [image])])
    red, green, blue = pixels(shuffled).astype(int).transpose(2, 0, 1)
    places = (red << 16) + (green << 8) + blue
    assert places.shape == (height, width)
    blocks = places[:1024].reshape(256, 4, 175, 4).swapaxes(1, 2).reshape(-1, 4, 4)
    corners = blocks[:, :1, :1]
    inside = (corners // width < 1024).ravel()  # those from the edge were made whole by repeating it
    offsets = np.arange(4)[:, None] * width + np.arange(4)
    assert (blocks - corners == offsets)[inside].all()
    assert (places != numbered).mean() > 0.99


def test_a_picture_of_one_pixel_stays_and_a_damaged_one_is_named():
    tiny = question(0, "1", [png([[[1, 2, 3]]])])
    assert (pixels(all_pictures("shuffled", [tiny])[0][0]) == [[[1, 2, 3]]]).all()
    for name in ("blank", "shuffled"):
        with pytest.raises(UserError, match="question 'digits-7', image 1: cannot read"):
            all_pictures(name, [question(7, "1", [picture(0), b"GIF89a"])])


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=24), st.integers(0, 5))
def test_wrong_pictures_are_a_derangement_with_as_few_equal_answers_as_can_be(answers, seed):
    questions = [question(i, str(gold), [bytes([i])]) for i, gold in enumerate(answers)]
    donors = [pictures[0][0] for pictures in all_pictures("wrong", questions, seed)]
    assert sorted(donors) == list(range(len(answers)))
    assert all(donor != i for i, donor in enumerate(donors))
    equal = sum(answers[donor] == gold for donor, gold in zip(donors, answers, strict=True))
    most = max(collections.Counter(answers).values())
    assert equal == max(0, 2 * most - len(answers))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=16))
def test_questions_about_one_picture_do_not_get_it_from_each_other(drawn):
    questions = [question(i, str(gold), [bytes([image])]) for i, (image, gold) in enumerate(drawn)]
    alone = len({image for image, _ in drawn}) == 1
    for (image, _), wrong in zip(drawn, all_pictures("wrong", questions), strict=True):
        assert wrong is None if alone else wrong[0] != bytes([image])


def test_of_many_equal_answers_no_more_is_tried_than_can_help():
    began = time.process_time()
    questions = [question(i, "no" if i % 10 else "yes", [b"%d" % i]) for i in range(2000)]
    wrong = all_pictures("wrong", questions)
    assert sum(q.conversation.images == pictures for q, pictures in zip(questions, wrong, strict=True)) == 0
    assert time.process_time() - began < 5  # 20 and more if all of them looked for a partner that nobody can be


def test_the_same_seed_gives_the_same_wrong_pictures():
    questions = of([i % 10 for i in range(40)])
    assert all_pictures("wrong", questions) == all_pictures("wrong", questions)
    assert all_pictures("wrong", questions) != all_pictures("wrong", questions, seed=1)


def test_wrong_pictures_are_of_the_same_task():
    questions = [*of("123", "digits"), *(question(i, "4", [picture(50 + i)], "count") for i in range(3))]
    allowed = {task: {q.conversation.images for q in questions if q.task == task} for task in ("digits", "count")}
    wrong = all_pictures("wrong", questions)
    assert all(pictures in allowed[q.task] for q, pictures in zip(questions, wrong, strict=True))


def test_the_only_question_of_a_task_borrows_from_another_task():
    questions = [*of("123", "digits"), question(0, "4", [picture(60)], "count")]
    assert all_pictures("wrong", questions)[3][0] in {q.conversation.images[0] for q in questions[:3]}


def test_a_question_with_another_number_of_pictures_borrows_in_its_own_task_first():
    others = [question(i, "7", [picture(50 + i)], "count") for i in range(4)]
    asked = [*others, question(0, "1", [picture(1)]), question(1, "2", [picture(2), picture(3)])]
    assert all_pictures("wrong", asked)[4:] == [(picture(2),), (picture(1), picture(1))]


def test_as_many_pictures_come_as_the_question_has():
    pairs = [question(i, str(i), [picture(2 * i), picture(2 * i + 1)]) for i in range(4)]
    three = question(4, "9", [picture(i) for i in (20, 21, 22)])
    words = question(5, "8", [])
    wrong = all_pictures("wrong", [*pairs, three, words])
    assert [len(pictures) for pictures in wrong] == [2, 2, 2, 2, 3, 0]
    originals = [pair.conversation.images for pair in pairs]
    assert sorted(wrong[:4]) == sorted(originals)  # pairs among themselves
    assert (*wrong[4][:2], wrong[4][0]) == wrong[4]  # from a pair, whose first comes again
    assert wrong[4][:2] in originals


def test_a_single_question_has_no_wrong_picture_and_no_score_for_it():
    benchmark = pocket(
        [Conversation((Turn("user", "<image>Which?"), Turn("assistant", "3")), (picture(3),), "x-3", "digits")]
    )
    counts = []
    result = runner.evaluate(reader, benchmark, controls=("blank", "wrong"), progress=counts.append)
    assert result.tasks["digits"].controls == {"blank": 0.0, "wrong": None}
    assert result.rows[0]["wrong_prediction"] is None
    assert result.rows[0]["wrong_score"] is None
    assert counts == [1, 1, 1]


def test_what_has_no_wrong_picture_does_not_count():
    same, other = of([3, 3, 3, 3])[0].conversation.images, [picture(8)]
    golds = ["3", "3", "3"]
    questions = [question(i, gold, same) for i, gold in enumerate(golds)]
    assert all_pictures("wrong", questions) == [None] * 3
    assert None not in all_pictures("wrong", [*questions, question(3, "8", other)])


def test_names_are_checked():
    controls.check_names(("wrong", "blank"), "--controls")
    with pytest.raises(UserError, match=r"--controls: unknown control 'shufled' \(did you mean 'shuffled'\?\)"):
        controls.check_names(("blank", "shufled"), "--controls")
    with pytest.raises(UserError, match="known controls: blank, shuffled, wrong"):
        controls.check_names(("zzz",), "--controls")
    with pytest.raises(UserError, match="'blank' is there twice"):
        controls.check_names(("blank", "blank"), "--controls")


def test_a_recipe_knows_the_same_controls():
    field = next(f for f in dataclasses.fields(EvaluationConfig) if f.name == "controls")
    hint = typing.get_type_hints(EvaluationConfig, include_extras=True)[field.name]
    assert set(typing.get_args(typing.get_args(hint)[0])) == set(controls.CONTROLS)
    assert EvaluationConfig().controls == ("blank",)
    with pytest.raises(UserError, match=r"config.evaluation.controls: each at most once, got blank, blank"):
        EvaluationConfig(controls=("blank", "blank"))


def test_a_run_from_before_there_were_controls_can_be_continued_with_them():
    before, now = flatten({"evaluation": {"limit": 0}}), flatten({"evaluation": {"limit": 0, "controls": ["blank"]}})
    assert all(path.startswith(MAY_CHANGE) for path in now.keys() - before.keys())
