import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.formats.records import parse
from vlm_jax.data.recipes.response_formats import OPTION_LETTER, SHORT_ANSWER
from vlm_jax.data.recipes.vqa import (
    Question,
    caption_records,
    coco_captions,
    merged,
    option_question,
    rotated_questions,
    vqa_questions,
)
from vlm_jax.errors import UserError

SHORT = SHORT_ANSWER.prompt
BOOKS = [
    Question("b.jpg", "Who wrote this book?", "Ann", SHORT_ANSWER),
    Question("a.jpg", "What color is it?", "red", SHORT_ANSWER),
    Question("b.jpg", "What is its title?", "Life", SHORT_ANSWER),
    Question("b.jpg", "Tell me more.", "It is a book about everything."),
]


def said(record):
    return [turn["value"] for turn in record["conversations"]]


def test_questions_about_a_picture_are_one_conversation():
    first, second = merged(BOOKS)
    assert (first["id"], first["image"]) == ("b.jpg", "b.jpg")
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt"] * 3
    assert said(first) == [
        f"<image>\nWho wrote this book?\n{SHORT}", "Ann", "What is its title?", "Life",
        "Tell me more.", "It is a book about everything.",
    ]  # fmt: skip
    assert said(second) == [f"<image>\nWhat color is it?\n{SHORT}", "red"]
    assert said(merged(BOOKS, always=True)[0])[2] == f"What is its title?\n{SHORT}"


def test_limits():
    one = merged(BOOKS, max_turns=1)
    assert [record["id"] for record in one] == ["b.jpg#1", "b.jpg#2", "b.jpg#3", "a.jpg"]
    assert said(one[1]) == [f"<image>\nWhat is its title?\n{SHORT}", "Life"]  # it begins a conversation of its own
    two = merged(BOOKS, max_turns=2)
    assert [len(record["conversations"]) for record in two] == [4, 2, 2]
    # Who wrote ... phrase. Ann: 4 + 9 + 1; the second: 4 + 1; the third: 3 + 6
    for limit, turns in ((14, [2, 2, 2, 2]), (19, [4, 2, 2]), (28, [6, 2]), (1, [2, 2, 2, 2])):
        assert [len(record["conversations"]) for record in merged(BOOKS, max_tokens=limit)] == turns, limit
    assert [len(r["conversations"]) for r in merged(BOOKS, max_tokens=1, tokens=lambda text: 0)] == [6, 2]


QUESTIONS = st.lists(
    st.builds(
        Question,
        st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]),
        st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(str.strip),
        st.sampled_from(["yes", "no", "12"]),
        st.sampled_from([None, SHORT_ANSWER, OPTION_LETTER]),
    ),
    max_size=12,
)


@settings(max_examples=100)
@given(questions=QUESTIONS, seed=st.none() | st.integers(0, 3), turns=st.integers(0, 3), limit=st.integers(0, 30))
def test_every_question_stays_and_can_be_read(questions, seed, turns, limit):
    records = merged(questions, seed=seed, max_turns=turns, max_tokens=limit)
    found = []
    for record in records:
        read = parse(json.dumps(record).encode(), "here")
        assert read.images == (record["image"],)
        texts = [turn.text for turn in read.turns]
        assert not turns or len(texts) <= 2 * turns
        assert texts[0].startswith("<image>\n")
        asked = [texts[0].removeprefix("<image>\n"), *texts[2::2]]
        assert sum(text.endswith(f"\n{SHORT}") for text in asked) <= 1
        for text, answer in zip(asked, texts[1::2], strict=True):
            bare = text.removesuffix(f"\n{SHORT}").removesuffix(f"\n{OPTION_LETTER.prompt}")
            found.append((record["image"], bare, answer))
    assert sorted(found) == sorted((q.image, q.text, q.answer) for q in questions)
    assert len({record["id"] for record in records}) == len(records)
    if seed is None:
        for image in {question.image for question in questions}:
            assert [f[1] for f in found if f[0] == image] == [q.text for q in questions if q.image == image]


def test_a_shuffle_depends_on_the_picture_and_the_seed_alone():
    many = [Question(image, f"Q{number}", "A") for image in ("a.jpg", "b.jpg") for number in range(30)]
    first, second = (said(record)[::2] for record in merged(many, seed=1))
    assert first != [f"<image>\nQ{n}" if not n else f"Q{n}" for n in range(30)]
    assert [text.removeprefix("<image>\n") for text in first] != [text.removeprefix("<image>\n") for text in second]
    assert said(merged(many[30:], seed=1)[0])[::2] == second
    assert said(merged(many, seed=2)[0])[::2] != first


def test_multiple_choice():
    question = option_question("a.jpg", "Which?", ["one", "two"], 1)
    assert said(merged([question, question])[0]) == [
        f"<image>\nWhich?\nA. one\nB. two\n{OPTION_LETTER.prompt}", "B",
        f"Which?\nA. one\nB. two\n{OPTION_LETTER.prompt}", "B",
    ]  # fmt: skip
    turned = rotated_questions("a.jpg", "Which?", ["one", "two", "three"], 1)
    assert [question.answer for question in turned] == ["B", "A", "C"]
    for question in turned:
        assert f"{question.answer}. two" in question.text.splitlines()
    with pytest.raises(UserError, match="right: must be the number of one of 2 options"):
        option_question("a.jpg", "Which?", ["one", "two"], 2)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("a.jpg", " ", "A"), r"a\.jpg: a question's text is empty"),
        (Question("a.jpg", "Q", "\n"), r"a\.jpg: a question's answer is empty"),
        (Question("a.jpg", "<image>\nQ", "A"), "has a mark of a picture"),
    ],
)
def test_questions_that_are_none(question, message):
    with pytest.raises(UserError, match=message):
        merged([question])


def test_vqav2():
    asked = {"questions": [{"question_id": 7, "image_id": 12, "question": "Is it?"}]}
    answered = {"annotations": [{"question_id": 7, "multiple_choice_answer": "yes", "answers": []}]}
    assert vqa_questions(asked, answered) == [
        Question("COCO_train2014_000000000012.jpg", "Is it?", "yes", SHORT_ANSWER)
    ]
    with pytest.raises(UserError, match=r"questions\[0\]\.question_id: there is no annotation of question 7"):
        vqa_questions(asked, {"annotations": []})
    with pytest.raises(UserError, match=r"questions\[0\]\.image_id: must be of type int, got None"):
        vqa_questions({"questions": [{"question_id": 7, "question": "Is it?"}]}, answered)
    with pytest.raises(UserError, match="annotations: must be a list of objects"):
        vqa_questions(asked, {})


def test_captions():
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 2, "caption": "A dog\n runs."},
            {"image_id": 1, "caption": "A cat."},
            {"image_id": 2, "caption": "A dog."},
        ],
    }
    records = caption_records(coco_captions(content))
    assert [record["id"] for record in records] == ["b.jpg#1", "a.jpg", "b.jpg#2"]
    assert said(records[0]) == ["<image>", "A dog runs."]
    assert said(caption_records([("a.jpg", "x")], "Describe it.")[0]) == ["<image>\nDescribe it.", "x"]
    for record in records:
        assert len(parse(json.dumps(record).encode(), "here").turns) == 2
    with pytest.raises(UserError, match=r"annotations\[0\]\.image_id: there is no image 3"):
        coco_captions({**content, "annotations": [{"image_id": 3, "caption": "x"}]})
    with pytest.raises(UserError, match=r"a\.jpg: the caption is empty"):
        caption_records([("a.jpg", " ")])
