import json

import pytest

from tests.meta_fixture import turns, write_lines
from vlm_jax.data.conversation import RecordError, Turn
from vlm_jax.data.formats.annotations import AnnotationSource, open_lines
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.formats.records import Record, parse

QUESTION, ANSWER = "<image>\nWhat is it?", "A cat."
TURNS = (Turn("user", QUESTION), Turn("assistant", ANSWER))
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
PARTS = [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "What is it?", "index": None}]


def read(record):
    return parse(json.dumps(record).encode(), "x:1")


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "image": "a.jpg", "conversations": turns(QUESTION, ANSWER)},
        {"image": "a.jpg", "messages": None, "conversations": CHAT},
        {"images": ["a.jpg"], "messages": CHAT},
        {"images": "a.jpg", "messages": turns(QUESTION, ANSWER)},
        {"images": ["a.jpg"], "messages": [{"role": "user", "content": PARTS}, CHAT[1]]},
        {
            "images": ["a.jpg"],
            "messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}],
        },
    ],
)
def test_layouts_say_the_same(record):
    assert read(record) == Record(TURNS, ("a.jpg",))


def test_layouts_without_marks():
    told = Turn("user", "What is it?")
    assert read({"image": "a.jpg", "question": told.text, "answer": ANSWER}) == Record((told, TURNS[1]), ("a.jpg",))
    assert read({"question": "?", "answers": ["no", "yes", "yes", "no"]}).turns[1].text == "no"
    assert read({"question": "?", "answers": ["no", "yes", "yes"]}).turns[1].text == "yes"
    texts = [{"user": "?", "assistant": "one", "source": "x"}, {"user": "??", "assistant": "two", "source": "x"}]
    both = read({"images": ["a.jpg", "b.jpg"], "texts": texts})
    assert [turn.text for turn in both.turns] == ["Image-1: <image>\nImage-2: <image>\n?", "one", "??", "two"]
    assert read({"texts": texts}).turns[0].text == "?"


def test_system_texts_of_every_kind():
    system = Turn("system", "Be brief.")
    for record in (
        {"conversations": turns("?", "!", system=system.text)},
        {"messages": [{"role": "system", "content": system.text}, {"role": "user", "content": "?"}, CHAT[1]]},
        {
            "messages": [{"role": "system", "content": [{"type": "text", "text": system.text}]}, CHAT[0], CHAT[1]],
            "images": ["a"],
        },
        {"conversations": turns("?", "!"), "system": system.text},
        {"question": "?", "answer": "!", "system": system.text},
    ):
        assert read(record).turns[0] == system
    assert read({"conversations": turns("?", "!"), "system": ""}).turns[0].role == "user"


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        (
            {"conversations": turns("?", "!"), "messages": CHAT},
            "type",
            "messages: the turns are in conversations already",
        ),
        ({"messages": []}, "turns", r"messages: the last turn must be an answer \('assistant'\)"),
        ({"messages": CHAT[::-1]}, "turns", r"messages\[0\].role: expected 'user', got 'assistant'"),
        ({"messages": [{"role": "tool", "content": ""}]}, "type", r"messages\[0\].role: must be .*got 'tool'"),
        ({"messages": [{"role": "user"}]}, "type", r"messages\[0\].content: must be text, got nothing"),
        ({"messages": [{"role": "user", "content": ["?"]}]}, "type", r"content\[0\].type: must be 'text', .*got text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "type", r"content\[0\].type: .*got 'audio'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "type", r"content\[0\].text: must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "index": 1}]}]}, "marks", "index: must be 0"),
        ({"conversations": turns("?", "!"), "system": 3}, "type", "system: must be text, got a number"),
        ({"conversations": turns("?", "!", system="s"), "system": "s"}, "turns", "system: there is a system text in"),
        ({"image": "a", "images": ["a"], "messages": CHAT}, "type", "images: the pictures are in image already"),
        ({"images": ["a", 1], "messages": CHAT}, "type", r"images\[1\]: must be text, got a number"),
        ({"images": ["a", "b"], "messages": CHAT}, "marks", r"messages: 1 <image> mark\(s\) for 2 image\(s\)"),
        ({"texts": []}, "type", "texts: must be a list of questions with answers"),
        ({"texts": [1]}, "type", r"texts\[0\]: must be an object, got a number"),
        ({"texts": [{"user": "?"}]}, "type", r"texts\[0\].assistant: must be text, got nothing"),
        ({"texts": [{"user": "?", "assistant": " "}]}, "empty answer", r"texts\[0\].assistant: the answer is empty"),
        ({"question": 1, "answer": "!"}, "type", "question: must be text, got a number"),
        ({"question": "?"}, "type", "answers: must be text, got nothing"),
        ({"question": "?", "answers": []}, "empty answer", "answers: there is no answer"),
        ({"question": "?", "answers": ["", ""]}, "empty answer", "answers: the answer is empty"),
        ({"question": "?", "answers": [None]}, "type", r"answers\[0\]: must be text, got nothing"),
        ({"question": "<image>?", "answer": "!"}, "marks", r"question: 1 <image> mark\(s\) for 0 image"),
    ],
)
def test_mistakes_name_the_field(record, reason, message):
    with pytest.raises(RecordError, match=message) as caught:
        read(record)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("x:1: ")


def test_a_list_is_as_good_as_lines(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(30, 20))
    records = [{"id": i, "image": "a.png", "conversations": turns(QUESTION, f"{i}")} for i in range(5)]
    (tmp_path / "list.json").write_text(json.dumps(records, indent=2))
    write_lines(tmp_path / "lines.jsonl", records)
    write_lines(tmp_path / "lines.json", records)  # as it is found on the hub
    entry = {"root": "."}
    names = ("list.json", "lines.jsonl", "lines.json")
    (tmp_path / "meta.json").write_text(json.dumps({name: {**entry, "annotation": name} for name in names}))
    parts = open_meta(tmp_path / "meta.json").parts
    for part in parts:
        assert len(part) == 5
        assert [part[i].turns[1].text for i in range(5)] == [str(i) for i in range(5)]
        assert part[2].images == ((tmp_path / "a.png").read_bytes(),)
    assert parts[0][2].place == f"{tmp_path}/list.json:3"


def test_a_bad_element_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"conversations": []}, {"conversations" 1}, 7]')
    source = AnnotationSource("a", open_lines(tmp_path / "a.json"), 3, tmp_path)
    for number, message in enumerate(
        ("a.json:1: conversations: the last", "a.json:2: not valid JSON", "a.json:3: must be a")
    ):
        with pytest.raises(RecordError, match=message):
            source[number]
