import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluation import breakdowns
from vlm_jax.evaluation.breakdowns import kinds


def row(task="digits", score=1.0, **changes):
    base = {"task": task, "score": score, "question": "Which?", "answers": ["7"], "prediction": "7"}
    return {**base, "width": 48, "height": 24, "tiles": 2, **changes}


def test_scores_by_tiles_and_by_size():
    rows = [row(), row(score=0.0), row(tiles=6, width=300), row("chart", tiles=6, score=0.5)]
    table = breakdowns.by_tiles(rows)
    assert table == {
        "columns": ["2 tiles", "6 tiles"],
        "lines": [("digits", [(0.5, 2), (1.0, 1)]), ("chart", [None, (0.5, 1)])],
    }
    assert breakdowns.by_size(rows)["columns"] == ["≤ 64 px", "≤ 512 px"]
    assert breakdowns.by_tiles([row(), row()]) is None
    assert breakdowns.by_tiles([row(tiles=None), row()]) is None
    assert breakdowns.by_size([row(width=None, height=None), row()]) is None


def test_a_kind_is_how_questions_begin_with_numbers_and_tags_left_out():
    questions = [f"What is the sum of row {i}?" for i in range(10)] + ["How many <ref>digits</ref> are there?"] * 10
    assert kinds(questions) == ["What is the sum of row #?"] * 10 + ["How many digits are there?"] * 10


def test_kinds_that_are_too_small_stay_together():
    questions = ["Is A higher than B?"] * 20 + [f"What is the price of {word}?" for word in "abcdefgh"]
    assert set(kinds(questions)) == {"Is A higher than B?", "What is the price of …"}
    assert set(kinds([*questions, "Why?", "Who?"])) == {"Is A higher than B?", "What is the price of …", "others"}
    assert set(kinds(["What is the day?"] * 9 + ["What is the name?", "What is the age?"])) == {
        "What is the day?",
        "others: What is the …",
    }


def test_what_long_kinds_have_in_common_is_left_out():
    long = "Please provide the bounding box of the region that this sentence describes:"
    questions = [f"{long} the star"] * 9 + [f"{long} the bar {i}" for i in "abcdefghi"]
    assert set(kinds(questions)) == {"… star", "… bar …"}


def test_one_kind_keeps_its_whole_name():
    assert set(kinds(["Which digit is in row 3?", "Which digit is in row 12?"])) == {"Which digit is in row #?"}
    assert kinds(["a b", "c d"]) == ["…", "…"]
    assert kinds(["", ""]) == ["…", "…"]
    assert kinds([]) == []


@given(st.lists(st.text(alphabet="ab 1<>", max_size=8), max_size=60))
def test_every_question_has_a_kind_and_equal_questions_the_same(questions):
    labels = kinds(questions)
    assert len(labels) == len(questions)
    assert all(labels)
    assert len({(question, label) for question, label in zip(questions, labels, strict=True)}) == len(set(questions))


def test_scores_by_kind_stand_beside_the_best_answer_of_the_kind():
    days = [row(question="What is the day?", answers=[day], score=0.0) for day in ["Mon"] * 6 + ["Tue"] * 3]
    sums = [row(question=f"What is the sum of row {i}?", answers=[str(i)], score=float(i < 5)) for i in range(10)]
    found = breakdowns.by_kind(days + sums, "exact_match")
    assert [(kind["label"], kind["n"]) for kind in found] == [
        ("What is the sum of row #?", 10),
        ("What is the day?", 9),
    ]
    assert [kind["value"] for kind in found] == [0.5, 0.0]
    assert [kind["constant"] for kind in found] == pytest.approx([0.1, 6 / 9])


def test_what_is_of_no_kind_comes_last():
    rows = [row(question="Is it?")] * 8 + [row(question=f"{word} is it?") for word in "abcdefghijkl"]
    assert [kind["label"] for kind in breakdowns.by_kind(rows, "exact_match")] == ["Is it?", "others"]


def test_mistakes_that_come_again_are_listed_and_long_ones_are_not():
    def wrong(gold, said, times, score=0.0):
        return [row(answers=[gold], prediction=said, score=score)] * times

    rows = wrong("7", " 1", 5) + wrong("3", "8", 3) + wrong("2", "", 4) + wrong("5", "6", 2) + wrong("9", "4", 9, 0.5)
    assert breakdowns.mistakes(rows + wrong("x" * 30, "y", 6)) == [("7", "1", 5), ("2", "", 4), ("3", "8", 3)]
