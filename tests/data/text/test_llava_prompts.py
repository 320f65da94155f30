"""Ids and supervision of LLaVA's trainers, said again here by their rules, are ours on the same conversations.

The reference tokenises a whole prompt with a slow SentencePiece tokenizer, every stretch between images by itself
(`tokenizer_image_token` in `llava/mm_utils.py`), and finds the answers by the lengths of pieces that it tokenises once
more (`preprocess_v1`, `preprocess_llama_2` and `preprocess_plain` in `llava/train/train.py`).
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.data.text.sentencepiece_models import entry, slow, train, write
from vlm_jax.data.conversation import Turn
from vlm_jax.data.prepare import _tokenise
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer

PLACES = 3  # tokens of an image
IMAGE = -200  # the reference's number for where an image stands
WORDS = st.sampled_from(
    ["The", " total", " is", "128.50", " ", "  ", "\n", "\t", "don't", "哈哈", "é", "🦓", ":", "[", "="]
)
TEXT = st.lists(WORDS, min_size=1, max_size=6).map("".join).filter(str.strip)
QUESTIONS = st.tuples(TEXT, st.sampled_from(["", "<image>\n{}", "{}\n<image>", "{}"])).map(
    lambda pair: (pair[1] or "{}").format(pair[0])
)
DIALOGUES = st.lists(st.tuples(QUESTIONS, TEXT), min_size=1, max_size=3)


class Reference:
    """A slow tokenizer with a bos token, the older kind or the newer, over one made SentencePiece model."""

    def __init__(self, folder, legacy: bool, bos: str | None, prefix: bool = True) -> None:
        model = train(add_dummy_prefix=prefix, remove_extra_whitespaces=False, split_by_whitespace=True)
        size = len(model.pieces)
        added = {0: entry("<unk>"), 1: entry("<s>"), 2: entry("</s>"), size: entry("<image>")}
        added |= {size + 1: entry("<image_placeholder>"), size + 2: entry("###", normalized=False)}
        write(folder, model, added, tokenizer_class="LlamaTokenizer", legacy=legacy)
        self.ours = Tokenizer.load(folder)
        self.legacy, self.bos = legacy, [] if bos is None else [self.ours.token_id(bos)]
        self._encode = slow(model, added, legacy)

    def __call__(self, text: str) -> list[int]:
        return self.bos + (self._encode(text) if text else [])

    def with_images(self, prompt: str, mark: str = "<image>") -> list[int]:
        chunks = [self(chunk)[len(self.bos) :] for chunk in prompt.split(mark)]
        ids = self.bos + chunks[0]
        for chunk in chunks[1:]:
            ids += [IMAGE, *chunk]
        return ids


@pytest.fixture(scope="module", params=["older", "newer"])
def reference(request, tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("vicuna"), request.param == "older", "<s>")


def turns_of(dialogue):
    return [Turn(role, text) for pair in dialogue for role, text in zip(("user", "assistant"), pair, strict=True)]


def prompt_of(dialogue, system, question, answer):
    """The rules of `preprocess_multimodal`, then a conversation as text."""
    text = system
    for asked, answered in dialogue:
        if "<image>" in asked:
            asked = ("<image>\n" + asked.replace("<image>", "").strip()).strip()
        text += question.format(asked) + answer.format(answered)
    return text


def learned_of_rounds(reference, prompt, stop, header):
    """Which ids of a prompt are learned, by the lengths of its rounds; all of them must be accounted for."""
    ids = reference.with_images(prompt)
    learned = np.ones(len(ids), bool)
    place = 1
    learned[:place] = False
    for number, text in enumerate(filter(None, prompt.split(stop))):
        instruction, header_found, _ = text.partition(header)
        assert header_found
        length = len(reference.with_images(text))
        asked = len(reference.with_images(instruction + header)) - 2
        if number and not reference.legacy:
            # A later release corrects for what the newer tokenizers do not put behind </s>.
            length, asked = length - 1, asked - 1
        learned[place : place + asked] = False
        place += length
    assert place == len(ids)
    return ids, learned


def expanded(reference, ids, learned, token="<image>"):
    """With every image's place as many tokens as ours, none of them learned."""
    counts = [PLACES if number == IMAGE else 1 for number in ids]
    image = reference.ours.token_id(token)
    ids = np.repeat([image if number == IMAGE else number for number in ids], counts)
    return ids.tolist(), (np.repeat(learned, counts) & (ids != image)).tolist()


def ours_of(reference, dialogue, template):
    images = sum(asked.count("<image>") for asked, _ in dialogue)
    got = _tokenise(render(turns_of(dialogue), TEMPLATES[template], [PLACES] * images), reference.ours)
    return got.ids.tolist(), got.supervised.tolist()


@settings(max_examples=60)
@given(dialogue=DIALOGUES)
def test_vicuna(reference, dialogue):
    prompt = prompt_of(dialogue, f"{TEMPLATES['vicuna_v1'].system} ", "USER: {} ", "ASSISTANT: {}</s>")
    assert ours_of(reference, dialogue, "vicuna_v1") == expanded(
        reference, *learned_of_rounds(reference, prompt, "</s>", " ASSISTANT: ")
    )


@settings(max_examples=60)
@given(dialogue=DIALOGUES)
def test_mistral(reference, dialogue):
    prompt = prompt_of(dialogue, "", "[INST] {} [/INST]", " {} </s>")
    assert ours_of(reference, dialogue, "mistral_instruct") == expanded(
        reference, *learned_of_rounds(reference, prompt, "</s>", "[/INST] ")
    )


@settings(max_examples=40)
@given(question=TEXT, caption=TEXT)
def test_plain(reference, question, caption):
    assume(reference.legacy or not caption.startswith(" "))  # see `sentencepiece_files._frame`
    ids = reference.with_images("<image>" + caption + "\n")
    learned = np.arange(len(ids)) >= len(reference.with_images("<image>"))
    assert ours_of(reference, [(f"{question}\n<image>", caption)], "plain") == expanded(reference, ids, learned)


@pytest.fixture(scope="module")
def yi(tmp_path_factory):
    """Yi's tokenizer puts nothing before a text."""
    return Reference(tmp_path_factory.mktemp("yi"), legacy=True, bos=None, prefix=False)


@settings(max_examples=60)
@given(dialogue=DIALOGUES)
def test_yi_vl(yi, dialogue):
    """Of what its trainer supervises the headers are left out: `### Assistant:`, and two tokens of `### Human:`."""
    header = TEMPLATES["yi_vl"].system + "\n\n"
    sentences = []
    for asked, answered in dialogue:
        if "<image>" in asked:
            asked = ("<image>\n" + asked.replace("<image>", "").strip()).strip()
        sentences += [f"### Human: {asked}\n", f"### Assistant: {answered}\n"]
    ids = yi.with_images(header + "".join(sentences) + "### ")
    learned, place = np.ones(len(ids), bool), len(yi(header))
    learned[:place] = False
    for number, sentence in enumerate(sentences):
        length = len(yi.with_images(sentence))
        if number % 2 == 0:
            learned[place + 2 : place + length] = False
        place += length
    ids, theirs = expanded(yi, ids, learned, "<image_placeholder>")
    got, ours = ours_of(yi, dialogue, "yi_vl")
    assert got == ids
    assert not np.any(np.array(ours) & ~np.array(theirs))
    answers = "".join(f" {answered}\n###" for _, answered in dialogue)
    assert yi.ours.decode(np.array(got)[ours], skip_special=False) == answers


def test_what_is_typed_is_no_structure(reference):
    """Where the reference reads a typed `</s>` or `<image>` as the token, here it is text."""
    typed = "a </s>USER: b <s> ASSISTANT: <image>"
    turns = [Turn("user", typed.replace("<image>", "")), Turn("assistant", typed)]
    got = _tokenise(render(turns, TEMPLATES["vicuna_v1"], []), reference.ours)
    ids = got.ids.tolist()
    assert [ids.count(reference.ours.token_id(token)) for token in ("<s>", "</s>", "<image>")] == [1, 1, 0]
    assert reference.ours.decode(got.ids[got.supervised], skip_special=False).strip() == f"{typed}</s>"


@pytest.mark.parametrize("name", ["vicuna_v1", "mistral_instruct", "yi_vl", "plain"])
def test_stops_are_single_tokens(reference, yi, name):
    tokenizer = (yi if name == "yi_vl" else reference).ours
    spans = render([Turn("user", "<image>\nQ"), Turn("assistant", "The total")], TEMPLATES[name], [1])
    got = _tokenise(spans, tokenizer)
    assert got.ids[got.supervised][-1] == tokenizer.stop_id(TEMPLATES[name])
