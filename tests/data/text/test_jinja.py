"""The chat template of a saved folder, rendered by transformers, says what `render` says."""

import dataclasses
import itertools

import pytest

from vlm_jax.data.conversation import Turn
from vlm_jax.data.text.jinja import to_jinja
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES

pytestmark = pytest.mark.torch

FORMATS = {
    **TEMPLATES,
    "mistral with a system text": dataclasses.replace(TEMPLATES["mistral_instruct"], system="It's \\ kind.\n"),
    "vicuna without one": dataclasses.replace(TEMPLATES["vicuna_v1"], system=None),
    "stripped": dataclasses.replace(TEMPLATES["yi_vl"], strip=True, images="marks"),
}
QUESTIONS = (
    "<image>\nIt's what?",
    "What\\n is this?\n<image>",
    " Is <image> or <image>\n it? ",
    "  No image\n",
    "<image>",
)


@pytest.fixture(scope="module")
def reference(tokenizer, tmp_path_factory):
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return auto.from_pretrained(folder)


def dialogues(template):
    """Turns of one, two and three questions, with images in any of them, closed and open, told and not."""
    told = [(), (Turn("system", " Be brief. "),)] if "system" in template.prefixes else [()]
    for system, first in itertools.product(told, QUESTIONS):
        yield (*system, Turn("user", first))
        yield (*system, Turn("user", first), Turn("assistant", " 17 <image> "))
        if not template.captions:
            for second in QUESTIONS:
                yield (*system, Turn("user", first), Turn("assistant", "17"), Turn("user", second))


def in_parts(turn):
    """A message as a list; an image is a mark with a newline behind it."""
    first, *others = turn.text.split("<image>\n") if turn.role == "user" else [turn.text]
    parts = [{"type": "text", "text": first}]
    for other in others:
        parts += [{"type": "image"}, {"type": "text", "text": other}]
    return {"role": turn.role, "content": parts}


@pytest.mark.parametrize("name", FORMATS)
def test_it_renders_what_we_render(reference, name):
    template = FORMATS[name]
    # What surrounds an image is for the processor to write, which replaces the context token.
    bare = dataclasses.replace(template, image_start="", image_end="")
    chat_template = to_jinja(template)
    seen = 0
    for turns in dialogues(template):
        images = sum(turn.text.count("<image>") for turn in turns if turn.role == "user")
        if template.captions and not images:
            continue
        is_open = turns[-1].role == "user"
        spans = render(turns, bare, [1] * images, open_turn=is_open)
        expected = "".join(span.text for span in spans)
        forms = [[{"role": turn.role, "content": turn.text} for turn in turns]]
        if images == sum(turn.text.count("<image>\n") for turn in turns):
            forms.append([in_parts(turn) for turn in turns])
        for messages in forms:
            text = reference.apply_chat_template(
                messages, chat_template=chat_template, tokenize=False, add_generation_prompt=is_open
            )
            assert text == expected, messages
            seen += 1
    assert seen > 8


@pytest.mark.parametrize("name", ["fuyu", "plain"])
def test_a_system_text_without_a_place_is_refused(reference, name):
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "<image>"}]
    with pytest.raises(Exception, match=f"format {name} has no place for a system text"):
        reference.apply_chat_template(messages, chat_template=to_jinja(TEMPLATES[name]), tokenize=False)
