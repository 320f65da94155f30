import io
import random

import pytest
from PIL import Image

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.errors import UserError
from vlm_jax.evaluation import benchmarks, runner
from vlm_jax.evaluation.benchmarks import pocket


def png(width=8, height=6, colour=(255, 0, 0)):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def asked(number, gold, task="digits", text="<image>\nWhich digit?", images=None):
    turns = (Turn("user", text), Turn("assistant", gold))
    return Conversation(turns, (png(8 + number),) if images is None else images, id=f"{task}-{number}", task=task)


def oracle(conversations):
    """Reads the gold answer from the picture's width, so a blank of the same size would betray a wrong blank run."""
    replies = []
    for conversation in conversations:
        with Image.open(io.BytesIO(conversation.images[0])) as image:
            seen = image.getpixel((0, 0)) == (255, 0, 0)
            replies.append(str((image.width - 8) % 10) if seen else "0")
    return replies


def test_pocket_hides_the_gold_answer_and_leaves_out_what_is_no_single_question():
    several = Conversation((*asked(0, "1").turns, *asked(0, "2").turns), (png(),), id="many", task="digits")
    with_system = Conversation((Turn("system", "Be brief."), *asked(2, "5").turns), (png(),), id="s", task="digits")
    benchmark = pocket([asked(1, "4"), several, with_system])
    assert [q.answers for q in benchmark.questions] == [("4",), ("5",)]
    assert all(q.conversation.turns[-1].role == "user" for q in benchmark.questions)
    assert benchmark.questions[0].text == "Which digit?"
    assert benchmark.left_out == 1
    assert benchmark.metric_by_task == {"digits": "exact_match"}


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([asked(1, "4", task="poetry")], "'poetry-1': task 'poetry' has no metric"),
        ([asked(1, "4"), asked(1, "4")], "'digits-1': this id occurs twice"),
        ([asked(1, "left", task="point")], "'point-1': no box"),
        ([], "no question among 0 conversations"),
    ],
)
def test_pocket_names_the_bad_record(conversations, message):
    with pytest.raises(UserError, match=message):
        pocket(conversations)


def test_an_unknown_benchmark_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'pocket'"):
        benchmarks.reader("pockett")
    assert benchmarks.reader("pocket") is pocket


def test_limited_takes_the_first_of_each_task():
    benchmark = pocket([asked(i, "1", task=task) for task in ("digits", "count") for i in range(5)])
    assert [q.id for q in benchmark.limited(2).questions] == ["digits-0", "digits-1", "count-0", "count-1"]


def test_evaluate_scores_pictures_blanks_and_majority():
    golds = ["0", "1", "2", "3", "0", "5"]  # the oracle says 4 for the fifth
    benchmark = pocket([asked(i, gold) for i, gold in enumerate(golds)])
    answered = []
    result = runner.evaluate(
        oracle,
        benchmark,
        reference=[asked(i, gold) for i, gold in enumerate("11120")],
        grid=lambda width, height, images: (2, 1),
        chunk_size=4,
        progress=answered.append,
    )
    score = result.tasks["digits"]
    assert score.value == pytest.approx(5 / 6)
    assert score.controls["blank"] == pytest.approx(2 / 6)  # "0" twice
    assert (score.majority_answer, score.majority) == ("1", pytest.approx(1 / 6))
    assert score.n == 6
    assert score.interval[0] < score.value <= score.interval[1]
    assert score.standard_error == pytest.approx((5 / 6 * 1 / 6 * 6 / 5 / 6) ** 0.5)
    assert answered == [4, 2, 4, 2]
    assert result.rows[4] == {
        "id": "digits-4",
        "task": "digits",
        "question": "Which digit?",
        "answers": ["0"],
        "prediction": "4",
        "score": 0.0,
        "blank_prediction": "0",
        "blank_score": 1.0,
        "width": 12,
        "height": 6,
        "grids": [[2, 1]],
        "tiles": 2,
    }
    assert result.report()["digits"]["baselines"] == {"majority": score.majority, "blank": score.controls["blank"]}


def test_without_a_reference_the_majority_comes_from_the_benchmark_and_is_no_weaker():
    benchmark = pocket([asked(i, gold) for i, gold in enumerate("2212")])
    result = runner.evaluate(oracle, benchmark, controls=())
    assert result.tasks["digits"].majority_answer == "2"
    assert result.tasks["digits"].controls == {}
    assert result.report()["digits"]["baselines"]["blank"] is None
    assert result.rows[0]["blank_prediction"] is None


def test_a_source_that_can_only_be_indexed_is_read_to_its_end():
    class Endless:
        name = "endless"

        def __len__(self):
            return 3

        def __getitem__(self, index):  # never raises IndexError, as record files that wrap around
            return asked(index, "1")

    benchmark = pocket(Endless())
    assert [q.id for q in benchmark.questions] == ["digits-0", "digits-1", "digits-2"]
    assert runner.majority_answers(benchmark, Endless()) == {"digits": "1"}


def test_the_constant_answer_is_the_best_one_under_the_tasks_metric():
    # "50" is most common, but "102" is within 5 % of four answers.
    golds = ["50", "50", "100", "101", "102", "104"]
    benchmark = pocket([asked(i, gold, task="chart") for i, gold in enumerate(golds)])
    assert runner.majority_answers(benchmark)["chart"] in {"100", "101", "102", "104"}
    boxes = ["<box>[[0, 0, 10, 10]]</box>"] * 2 + [f"<box>[[{i}, 0, {500 + i}, 500]]</box>" for i in range(9)]
    benchmark = pocket([asked(i, gold, task="point") for i, gold in enumerate(boxes)])
    assert "500]]" in runner.majority_answers(benchmark)["point"]


def test_a_reference_without_the_task_is_an_error():
    with pytest.raises(UserError, match="no question of task 'digits'"):
        runner.evaluate(oracle, pocket([asked(1, "1")]), reference=[asked(1, "1", task="count")])


def test_an_unreadable_picture_names_its_question():
    with pytest.raises(UserError, match="question 'digits-1', image 0: cannot read"):
        runner.evaluate(oracle, pocket([asked(1, "1", images=(b"GIF89a",))]))


def test_a_model_that_swallows_a_question_is_a_defect():
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        runner.evaluate(lambda conversations: ["1"], pocket([asked(0, "1"), asked(1, "1")]))


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    scores = [1.0] * 300 + [0.0] * 100
    low, high = runner.bootstrap_interval(scores)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.01)
    assert high == pytest.approx(0.75 + half, abs=0.01)


def test_bootstrap_interval_depends_on_the_scores_and_the_seed_but_not_on_their_order():
    scores = [i / 100 for i in range(100)]
    shuffled = random.Random(0).sample(scores, len(scores))
    assert runner.bootstrap_interval(shuffled) == runner.bootstrap_interval(scores)
    assert runner.bootstrap_interval(scores, seed=1) != runner.bootstrap_interval(scores)
