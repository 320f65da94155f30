"""The reader of questions of one's own; `pocket` is tested with the runner."""

import pytest

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.errors import UserError
from vlm_jax.evaluation import benchmarks
from vlm_jax.evaluation.benchmarks import TASK_METRICS, questions
from vlm_jax.evaluation.metrics import METRICS

BOX = "<ref>the dog</ref><box>[[10, 20, 300, 400]]</box>"


def asked(name, gold, task):
    turns = (Turn("user", "<image>\nWhere is the dog?"), Turn("assistant", gold))
    return Conversation(turns, (b"not looked at",), id=name, task=task)


def metrics(*conversations):
    return questions(list(conversations)).metric_by_task


def test_a_task_that_nobody_knows_is_scored_by_equal_answers():
    assert metrics(asked("a", "left", "poetry"), asked("b", "right", "poetry")) == {"poetry": "exact_match"}


def test_a_task_whose_gold_answers_are_all_boxes_is_scored_by_their_overlap():
    assert metrics(asked("a", BOX, "find"), asked("b", "[1, 2, 3, 4]", "find")) == {"find": "box_iou_accuracy"}


@pytest.mark.parametrize("first", [True, False])
def test_one_answer_without_a_box_makes_it_equal_answers(first):
    conversations = [asked("a", BOX, "find"), asked("b", "nowhere", "find")]
    assert metrics(*(conversations if first else reversed(conversations))) == {"find": "exact_match"}


def test_each_task_has_its_own_metric_in_the_order_of_the_data():
    conversations = asked("a", "left", "side"), asked("b", BOX, "find"), asked("c", "up", "side")
    assert list(metrics(*conversations).items()) == [("side", "exact_match"), ("find", "box_iou_accuracy")]


@pytest.mark.parametrize(("task", "metric"), TASK_METRICS.items())
def test_a_task_of_the_pocket_data_keeps_its_metric_whatever_the_answers_look_like(task, metric):
    assert metrics(asked("a", BOX, task)) == {task: metric}
    assert metric in METRICS


def test_the_questions_are_those_of_the_data_and_the_gold_answer_is_hidden():
    several = Conversation(asked("a", "1", "x").turns + asked("a", "2", "x").turns, (b"", b""), id="many", task="x")
    benchmark = questions([asked("a", "left", "poetry"), several, asked("b", BOX, "find")])
    assert (benchmark.name, benchmark.left_out) == ("questions", 1)
    assert [(q.id, q.task, q.answers) for q in benchmark.questions] == [
        ("a", "poetry", ("left",)),
        ("b", "find", (BOX,)),
    ]
    assert [turn.role for q in benchmark.questions for turn in q.conversation.turns] == ["user", "user"]


def test_an_id_that_comes_twice_is_an_error():
    with pytest.raises(UserError, match="benchmark questions: conversation 'a': this id occurs twice"):
        questions([asked("a", "left", "poetry"), asked("b", "left", "poetry"), asked("a", "right", "prose")])


@pytest.mark.parametrize(
    ("conversations", "count"),
    [
        ([], 0),
        ([Conversation((Turn("user", "Hello"),), id="open")], 1),
        ([Conversation(asked("a", "1", "x").turns * 2, id=str(i)) for i in range(3)], 3),
    ],
)
def test_data_without_questions_is_an_error(conversations, count):
    with pytest.raises(UserError, match=f"benchmark questions: no question among {count} conversations"):
        questions(conversations)


def test_the_reader_is_found_by_name():
    assert benchmarks.reader("questions") is questions
    with pytest.raises(UserError, match="did you mean 'questions'"):
        benchmarks.reader("question")
