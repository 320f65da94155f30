"""Every prompt format written out by hand from its reference: the text, what is learned of it, and the open header."""

import dataclasses

import pytest

from vlm_jax.data.conversation import Turn
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES, Template
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError

A_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
YI = TEMPLATES["yi_vl"].system
TURNS = (
    Turn("user", "<image>\nWhat is it?"),
    Turn("assistant", "A dog."),
    Turn("user", "Where?"),
    Turn("assistant", "There."),
)
CHATML = "<|im_start|>{}\n{}<|im_end|>".format

# Name -> the prompt of TURNS (`*` where a token of the image stands), and what is learned.
WRITTEN = {
    "vicuna_v1": (
        f"<s>{A_CHAT} USER: **\nWhat is it? ASSISTANT: A dog.</s>USER: Where? ASSISTANT: There.</s>",
        [" A dog.</s>", " There.</s>"],
    ),
    "phi": (
        f"{A_CHAT} USER: **\nWhat is it? ASSISTANT: A dog.<|endoftext|>USER: Where? ASSISTANT: There.<|endoftext|>",
        [" A dog.<|endoftext|>", " There.<|endoftext|>"],
    ),
    "gemma": (
        f"<bos>{A_CHAT} USER: **\nWhat is it? ASSISTANT: A dog.<eos>USER: Where? ASSISTANT: There.<eos>",
        [" A dog.<eos>", " There.<eos>"],
    ),
    "mistral_instruct": (
        "<s>[INST] **\nWhat is it? [/INST] A dog. </s>[INST] Where? [/INST] There. </s>",
        [" A dog. </s>", " There. </s>"],
    ),
    "chatml_direct": (
        CHATML("system", "Answer the questions.")
        + CHATML("user", "**\nWhat is it?")
        + CHATML("assistant", "A dog.")
        + CHATML("user", "Where?")
        + CHATML("assistant", "There."),
        ["A dog.<|im_end|>", "There.<|im_end|>"],
    ),
    "yi_vl": (
        f"{YI}\n\n### Human: **\nWhat is it?\n### Assistant: A dog.\n### Human: Where?\n### Assistant: There.\n### ",
        [" A dog.\n###", " There.\n###"],
    ),
    "fuyu": (
        "**<s>User:What is it? Assistant:\x04 A dog.|ENDOFTEXT|User:Where? Assistant:\x04 There.|ENDOFTEXT|",
        [" A dog.|ENDOFTEXT|", " There.|ENDOFTEXT|"],
    ),
}
OPEN = {
    "vicuna_v1": "Where? ASSISTANT:",
    "phi": "Where? ASSISTANT:",
    "gemma": "Where? ASSISTANT:",
    "mistral_instruct": "Where? [/INST]",
    "chatml_direct": "Where?<|im_end|><|im_start|>assistant\n",
    "yi_vl": "### Human: Where?\n### Assistant:",
    "fuyu": "User:Where? Assistant:\x04",
}


def text(spans):
    return "".join("*" * span.placeholders if span.image is not None else span.text for span in spans)


def learned(spans):
    """Runs of supervised text."""
    return (
        "".join(span.text if span.supervised else "\0" for span in spans).replace("\0\0", "\0").strip("\0").split("\0")
    )


def runs(spans):
    return [run for run in learned(spans) if run]


@pytest.mark.parametrize("name", WRITTEN)
def test_prompts_by_hand(name):
    prompt, answers = WRITTEN[name]
    spans = render(TURNS, TEMPLATES[name], [2])
    assert text(spans) == prompt
    assert runs(spans) == answers
    opened = text(render(TURNS[:3], TEMPLATES[name], [2], open_turn=True))
    assert opened == prompt[: len(opened)]
    assert opened.endswith(OPEN[name])


def test_captions_stand_behind_their_images():
    plain = TEMPLATES["plain"]
    for question in ("<image>\nDescribe it.", "Describe it.\n<image>", "What is this?"):
        spans = render((Turn("user", question), Turn("assistant", "a dog")), plain, [3])
        assert text(spans) == "<s>***a dog\n"
        assert runs(spans) == ["a dog\n"]
    for name, bos in (("plain_bare", ""), ("plain_gemma", "<bos>")):
        assert text(render((Turn("user", "?"), Turn("assistant", "a dog")), TEMPLATES[name], [1])) == f"{bos}*a dog\n"
    assert text(render((Turn("user", "Describe it."),), plain, [3], open_turn=True)) == "<s>***"
    several = (Turn("user", "<image>"), Turn("assistant", "one"), Turn("user", "again"), Turn("assistant", "two"))
    with pytest.raises(UserError, match="'plain' is a caption behind its images; there are 2 questions"):
        render(several, plain, [1])
    branches = [(span.branch, span.text) for span in render(several, plain, [1], independent=True)]
    assert branches == [(0, "<s>"), (0, "<image>"), (1, "one"), (1, "\n"), (2, "two"), (2, "\n")]
    with pytest.raises(UserError, match="there are no image"):
        render((Turn("user", "Hello"), Turn("assistant", "Hi")), plain, [])


@pytest.mark.parametrize("question", ["<image>\n Which one? ", " Which one?\n<image>", "Which <image>one?"])
def test_an_image_is_moved_to_the_front_of_its_turn(question):
    """LLaVA's `preprocess_multimodal`; several images in one turn stay where they are."""
    turns = (Turn("user", " Hello "), Turn("assistant", "Hi"), Turn("user", question))
    prompt = text(render(turns, TEMPLATES["vicuna_v1"], [1], open_turn=True))
    assert prompt == f"<s>{A_CHAT} USER:  Hello  ASSISTANT: Hi</s>USER: *\nWhich one? ASSISTANT:"
    two = (Turn("user", "Is <image> or <image> it?"),)
    assert " USER: Is * or ** it? ASSISTANT:" in text(render(two, TEMPLATES["vicuna_v1"], [1, 2], open_turn=True))


def test_images_before_the_prompt():
    turns = (Turn("user", "A <image> dog"), Turn("assistant", "Yes"), Turn("user", "And\n<image>"))
    assert text(render(turns, TEMPLATES["fuyu"], [1, 2], open_turn=True)) == (
        "***<s>User:A  dog Assistant:\x04 Yes|ENDOFTEXT|User:And Assistant:\x04"
    )


def test_system_texts():
    told = (Turn("system", "Be brief."), *TURNS)
    assert text(render(told, TEMPLATES["mistral_instruct"], [1])).startswith(
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n*\nWhat is it? [/INST] A dog. </s>[INST] Where?"
    )
    assert text(render(told, TEMPLATES["vicuna_v1"], [1])).startswith("<s>Be brief. USER: *\n")
    assert text(render(told, TEMPLATES["yi_vl"], [1])).startswith("Be brief.\n\n### Human: *\n")
    own = dataclasses.replace(TEMPLATES["mistral_instruct"], system="Be kind.")
    assert text(render(TURNS, own, [1])).startswith("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n*\n")
    for name in ("fuyu", "plain"):
        with pytest.raises(UserError, match=f"'{name}' has no place for a system text"):
            render((Turn("system", "Be brief."), *TURNS[:2]), TEMPLATES[name], [1])
        with pytest.raises(UserError, match="no place"):
            dataclasses.replace(TEMPLATES[name], system="x")


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if not template.captions])
def test_branches_are_the_conversations_that_they_would_be_alone(name):
    turns = (*TURNS[:2], Turn("user", "Q2"), Turn("assistant", "A2"))
    spans = render(turns, TEMPLATES[name], [2], independent=True)
    for branch, answered in ((1, turns[:2]), (2, (Turn("user", "<image>\nQ2"), turns[3]))):
        own = [span for span in spans if span.branch in (0, branch)]
        alone = render(answered, TEMPLATES[name], [2])
        assert text(own) == text(alone)
        assert runs(own) == runs(alone)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_tokenizer_trained_for_a_format(template: Template):
    """It has all its tokens, in any text that it was trained on, and what is typed does not become one of them."""
    tokenizer = Tokenizer.train(["USER: a dog ASSISTANT: 12 cats " + " ".join(template.control)] * 3, 300, template)
    assert tokenizer.decode([tokenizer.stop_id(template)], skip_special=False) == template.stop
    for token in (*template.control, *template.image_tokens, *filter(None, [template.bos])):
        number = tokenizer.token_id(token)
        assert number not in tokenizer.encode(f"a {token} b")
        assert tokenizer.decode(tokenizer.encode(f"a {token} b")) == f"a {token} b"
        assert number in tokenizer.encode_pieces([("a ", False), (token, True)])
    added = tokenizer.with_image_tokens(template)
    assert added.to_json() == tokenizer.to_json()


def test_a_stop_that_is_several_tokens():
    tokenizer = Tokenizer.train(["a b c"], 300)
    with pytest.raises(UserError, match="no token '###', which ends an answer in 'yi_vl'"):
        tokenizer.stop_id(TEMPLATES["yi_vl"])
    added = tokenizer.with_image_tokens(TEMPLATES["yi_vl"])
    assert added.stop_id(TEMPLATES["yi_vl"]) == tokenizer.vocab_size + 1  # behind <image_placeholder>
