import json

import pytest

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.records import parse
from vlm_jax.data.recipes.contexts import Context, NamedBox
from vlm_jax.data.recipes.flows import Reply, flow_of, reply_of
from vlm_jax.data.recipes.replies import parse_reply
from vlm_jax.data.recipes.styles import load_style, messages, names_of_styles
from vlm_jax.errors import UserError

CONTEXT = Context(
    "5", "a.jpg", ("A cat on a sofa.",), (NamedBox("cat", (0.1, 0.2, 0.4, 0.5)),), ("MENU",), ("The cat is grey.",)
)
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:"}}
PAIR = {"question": "What is <st>cat<ed> [0.100, 0.200, 0.400, 0.500]?", "answer": "A cat."}
REPLIES = {"conversation": [PAIR, PAIR], "conversations": [[PAIR, PAIR], [PAIR]], "pairs": [PAIR, PAIR]}


def run(flow, replies):
    """The steps that a flow asked for, and its records."""
    steps, replies = [], iter(replies)
    try:
        request = next(flow)
        while True:
            steps.append(request)
            request = flow.send(next(replies))
    except StopIteration as done:
        return steps, done.value


@pytest.mark.parametrize("name", names_of_styles())
def test_every_style_makes_records_that_can_be_read(name):
    style = load_style(name)
    if style.type == "ask":
        text = json.dumps(REPLIES[style.reply]) if style.reply in REPLIES else "A grey cat on a sofa."
        replies = [Reply(text)]
    else:
        replies = [Reply("A grey cat."), Reply("A dog."), Reply("70"), Reply("90"), Reply("20")]
    steps, found = run(flow_of(style, CONTEXT, "x", 0), replies)
    assert len(steps) == len(replies)
    assert len(found) == {"conversations": 2, "pairs": 2}.get(getattr(style, "reply", ""), 1)
    for record in found:
        assert parse(json.dumps(record).encode(), "x").images == ("a.jpg",)
        assert record["conversations"][0]["value"].startswith("<image>")
    shown = messages(steps[0].prompt, CONTEXT, IMAGE_PART, **steps[0].more)
    assert shown[0]["role"] == "system"
    assert "{" not in json.dumps(shown[-1]["content"]).replace('{"type"', "").replace('{"url"', "").replace(': {"', "")
    for need in style.needs:
        assert CONTEXT.text(need) in shown[-1]["content"]


@pytest.mark.parametrize("name", [name for name in names_of_styles() if load_style(name).type == "ask"])
def test_examples_are_replies_as_they_are_asked_for(name):
    style = load_style(name)
    for example in style.prompt.examples:
        assert parse_reply(example.assistant, style.reply, "Q", style.pattern)


def test_llavar_has_two_examples_and_runs_hot():
    prompt = load_style("text_conversation").prompt
    assert (len(prompt.examples), prompt.temperature) == (2, 1.0)


def test_captions_are_written_and_judged_and_the_best_are_kept():
    style = load_style("caption_filter")
    replies = [Reply("A grey cat."), Reply("A cat on a sofa."), Reply("60"), Reply("90")]
    steps, found = run(flow_of(style, CONTEXT, "x", 0), replies)
    assert [step.step for step in steps] == ["caption-0", "caption-1", "judge-0", "judge-1"]  # one caption came twice
    assert [step.more for step in steps[2:]] == [{"caption": "A cat on a sofa."}, {"caption": "A grey cat."}]
    content = messages(style.judge, CONTEXT, IMAGE_PART, caption="A {boxes} cat.")[-1]["content"]
    assert content[0] == IMAGE_PART
    assert "A {boxes} cat." in content[1]["text"]
    assert [(record["conversations"][1]["value"], record["score"]) for record in found] == [("A grey cat.", 90.0)]
    _, found = run(flow_of(style, CONTEXT, "x", 0), [*replies[:2], Reply("59"), Reply("0")])
    assert found == []


def test_of_equal_scores_the_caption_that_was_there_wins():
    style = load_style("caption_filter")
    _, found = run(flow_of(style, CONTEXT, "x", 0), [Reply("One."), Reply("Two."), *[Reply("80")] * 3])
    assert found[0]["conversations"][1]["value"] == "A cat on a sofa."


def test_the_question_of_a_description_follows_from_seed_and_id():
    style = load_style("detail")

    def asked(seed):
        contexts = [CONTEXT._replace(id=str(number)) for number in range(60)]
        return [run(flow_of(style, c, "x", seed), [Reply("A.")])[1][0]["conversations"][0]["value"] for c in contexts]

    assert asked(1) == asked(1) != asked(2)
    assert {text.removeprefix("<image>\n") for text in asked(1)} == set(style.questions)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("Sorry."), "x: ask: must be JSON, got 'Sorry.'"),
        (Reply(json.dumps([PAIR]), whole=False), "x: ask: was cut off at max_tokens"),
    ],
)
def test_replies_that_cannot_be_used(reply, said):
    with pytest.raises(RecordError, match=said) as raised:
        run(flow_of(load_style("conversation"), CONTEXT, "x", 0), [reply])
    assert raised.value.reason == "reply"


def test_a_context_must_have_something_to_write_about():
    with pytest.raises(RecordError, match="captions or boxes"):
        flow_of(load_style("conversation"), Context("1", "a.jpg", ocr=("x",)), "x", 0)
    with pytest.raises(RecordError, match="x: caption-0: is empty"):
        run(flow_of(load_style("caption_filter"), CONTEXT, "x", 0), [Reply("")])


def test_a_style_with_a_mistake(tmp_path):
    path = tmp_path / "mine.toml"
    good = 'type = "ask"\nabout = "x"\nreply = "pairs"\n[prompt]\nsystem = "s"\nuser = "{captions}"\n'
    for change, said in (
        (("pairs", "pears"), "reply"),
        (("{captions}", "{caption}"), "prompt.user: nothing is known as {caption}"),
        (('"pairs"', '"answer"'), "questions: an answer needs"),
        (('about = "x"', 'about = "x"\nneeds = ["boxs"]'), "needs: no field 'boxs'"),
        (('about = "x"', 'about = "x"\npattern = "("'), "pattern"),
        (("system", "sistem"), "sistem"),
    ):
        path.write_text(good.replace(*change))
        with pytest.raises(UserError, match=said):
            load_style(str(path))
    path.write_text(good)
    assert load_style(str(path)).reply == "pairs"
    with pytest.raises(UserError, match="did you mean 'detail'"):
        load_style("detial")


def test_what_a_server_said():
    raw = {"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}
    assert reply_of(raw) == Reply("Hi.", True)
    raw["choices"][0] |= {"finish_reason": "length", "message": {"content": None}}
    assert reply_of(raw) == Reply("", False)
