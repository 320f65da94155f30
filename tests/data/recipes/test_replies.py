import json

import pytest

from vlm_jax.data.recipes.replies import ReplyError, parse_reply, parse_score

PAIRS = [{"question": "What?", "answer": " That. "}, {"question": "Why?", "answer": "So."}]
BOTH = [("What?", "That."), ("Why?", "So.")]


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Sure:\n```\n{}\n```"])
def test_pairs(around):
    text = around.replace("{}", json.dumps(PAIRS, indent=2))
    assert parse_reply(text, "conversation") == [BOTH]
    assert parse_reply(text, "pairs") == [[BOTH[0]], [BOTH[1]]]


def test_conversations_and_answers():
    assert parse_reply(json.dumps([PAIRS, PAIRS[:1]]), "conversations") == [BOTH, BOTH[:1]]
    assert parse_reply(" A cat.\n", "answer", "Describe it.") == [[("Describe it.", "A cat.")]]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("I cannot help with that.", "conversation", "must be JSON, got 'I cannot"),
        (json.dumps(PAIRS)[:-5], "conversation", "must be JSON"),
        ("[]", "conversation", "must be a list of questions with answers"),
        (json.dumps({"question": "a", "answer": "b"}), "pairs", "must be a list of questions"),
        (json.dumps([PAIRS[0], {"question": "Why?"}]), "pairs", "pair 2 of the reply must have"),
        (json.dumps([{"question": "Why?", "answer": " "}]), "pairs", "pair 1 of the reply"),
        (json.dumps([{"question": "Why?", "answer": 5}]), "pairs", "pair 1 of the reply"),
        (json.dumps([PAIRS, "x"]), "conversations", "conversation 2 must be a list"),
        (json.dumps(PAIRS), "conversations", "conversation 1 must be a list"),
        ("  ", "answer", "is empty"),
        ("See <image>.", "answer", "mark of a picture"),
        ("```\n[]\n``` or\n```\n[]\n```", "pairs", "must be JSON"),
    ],
)
def test_what_was_not_asked_for(text, kind, said):
    with pytest.raises(ReplyError, match=said):
        parse_reply(text, kind, "Q")


def test_a_pattern_must_be_in_every_pair():
    assert parse_reply(json.dumps(PAIRS), "pairs", pattern="What|Why")
    with pytest.raises(ReplyError, match=r"'Why\? / So.'"):
        parse_reply(json.dumps(PAIRS), "pairs", pattern="What")


def test_scores():
    assert [parse_score(text) for text in ('{"score": 85}', "7.5", '```json\n{"score": 0}\n```')] == [85, 7.5, 0]
    for text in ("101", "-1", '"85"', "true", '{"mark": 5}', "about 80", "NaN"):
        with pytest.raises(ReplyError):
            parse_score(text)
