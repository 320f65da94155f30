import json
import pickle

import pytest

from vlm_jax.data.conversation import Turn
from vlm_jax.data.prepare import _tokenise
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer, added_tokens
from vlm_jax.errors import UserError

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")


def test_vocabulary(tokenizer):
    first = tokenizer.token_id("<|endoftext|>")
    assert [tokenizer.token_id(token) for token in added_tokens(TEMPLATES["internvl2"])] == list(
        range(first, first + 13)
    )
    assert tokenizer.vocab_size == first + 13 <= 420
    assert tokenizer.token_id("<IMG_CONTEXT>") == first + 5
    with pytest.raises(UserError, match="no token '<nothing>'"):
        tokenizer.token_id("<nothing>")


def test_numbers_go_digit_by_digit(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("128.50")] == list("128.50")


@pytest.mark.parametrize("text", ["", "Hello  world\n\n", "naïve 你好 🦓", "a<b & c|d>", "<im_end> <|im_end|> </img>"])
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_cannot_be_typed(tokenizer, token):
    ids = tokenizer.encode(f"a{token}b {token}")
    assert tokenizer.token_id(token) not in ids
    assert tokenizer.decode(ids) == f"a{token}b {token}"
    assert tokenizer.token_id(token) in tokenizer.encode_pieces([("a", False), (token, True)])


def test_markup_can_be_written_and_survives_decoding(tokenizer):
    text = "<ref>a dog</ref><box>[[1, 2, 3, 4]]</box><quad></quad>"
    ids = tokenizer.encode(text)
    for token in ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"):
        assert ids.count(tokenizer.token_id(token)) == 1
    stop = tokenizer.token_id("<|im_end|>")
    assert tokenizer.decode([*ids, stop]) == text
    assert tokenizer.decode([*ids, stop], skip_special=False) == text + "<|im_end|>"


def test_pieces_are_tokenised_as_one_text(tokenizer):
    joint = tokenizer.encode_pieces([("<|im_end|>user\n", True), ("\nThe total", False)])
    assert joint == [tokenizer.token_id("<|im_end|>"), *tokenizer.encode("user\n\nThe total")]
    # A control token does not arise from two halves, nor from text beside a control piece.
    halves = tokenizer.encode_pieces([("<|im_", False), ("end|>", False), ("<img", True), (">", False)])
    assert halves == tokenizer.encode("<|im_end|><img>")


def test_training_is_deterministic_and_ignores_added_tokens():
    texts = ["the cat sat on the mat <ref>the cat</ref><|im_end|>", "12 cats sat"] * 3
    first, second = Tokenizer.train(iter(texts), 300), Tokenizer.train(texts, 300)
    assert first.to_json() == second.to_json()
    clean = Tokenizer.train([t.replace("<ref>", "\0").replace("</ref><|im_end|>", "\0") for t in texts], 300)
    assert "|" not in "".join(json.loads(first.to_json())["model"]["vocab"]).replace("|", "", 1)
    assert clean.encode("the cat sat") == first.encode("the cat sat")
    with pytest.raises(UserError, match="vocab_size: must be at least 269"):
        Tokenizer.train(texts, 200)


def test_pickle_keeps_the_rule_about_control_tokens(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("x <|im_end|>") == tokenizer.encode("x <|im_end|>")
    assert copy.to_json() == tokenizer.to_json()


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.to_json() == tokenizer.to_json()
    loaded.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["pad_token"] == "<|endoftext|>"


def test_tokens_that_it_has(tokenizer):
    assert tokenizer.has("<|im_end|>", "<img>")
    assert not tokenizer.has("<|im_end|>", "</s>")
    content = tokenizer.to_json()
    assert Tokenizer._from_json(content, {"pad_token": "<img>"}).pad_id == tokenizer.token_id("<img>")
    for config in ({"pad_token": "</s>"}, {}):  # it does not have the first
        assert Tokenizer._from_json(content, config).pad_id == tokenizer.token_id("<|endoftext|>")


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_markup_of_a_released_tokenizer_is_set_free(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    for token in content["added_tokens"]:
        token["special"] = True  # as OpenGVLab's trainer registers them
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("<box>") == [tokenizer.token_id("<box>")]
    assert loaded.decode(loaded.encode("<box>")) == "<box>"
    assert loaded.encode("<img>") == tokenizer.encode("<img>")


@pytest.fixture(scope="module")
def reference(tokenizer, tmp_path_factory):
    """The saved folder, read by transformers."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return auto.from_pretrained(folder)


@pytest.mark.torch
def test_transformers_reads_the_folder(tokenizer, reference):
    text = "How many zebras? 128.50\n\n你好 <ref>a dog</ref><box>[[1, 2]]</box>"
    assert reference(text)["input_ids"] == tokenizer.encode(text)
    assert reference.eos_token_id == tokenizer.token_id("<|im_end|>")
    assert reference.pad_token_id == tokenizer.token_id("<|endoftext|>")
    assert reference.context_image_token == "<IMG_CONTEXT>"
    assert reference.context_image_token_id == tokenizer.token_id("<IMG_CONTEXT>")
    assert (reference.start_image_token, reference.end_image_token) == ("<img>", "</img>")
    assert reference.video_token == "<video>"
    assert len(reference) == tokenizer.vocab_size


@pytest.mark.torch
def test_golden_prompt_ids(tokenizer, reference):
    turns = (
        Turn("user", "<image>\nHow many zebras?"),
        Turn("assistant", "There are 17 zebras."),
        Turn("user", "\n Where is <image>?"),
    )
    tokens = _tokenise(render(turns, TEMPLATES["internvl2"], [6, 3], open_turn=True), tokenizer)
    ids, supervised, visual = tokens.ids, tokens.supervised, tokens.visual
    prompt = (
        "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
        "是一个有用无害的人工智能助手。<|im_end|>"
        "<|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 6 + "</img>\nHow many zebras?<|im_end|>"
        "<|im_start|>assistant\nThere are 17 zebras.<|im_end|>"
        "<|im_start|>user\n\n Where is <img>" + "<IMG_CONTEXT>" * 3 + "</img>?<|im_end|><|im_start|>assistant\n"
    )
    assert ids.tolist() == reference(prompt)["input_ids"]
    assert tokenizer.decode(ids[supervised], skip_special=False) == "There are 17 zebras.<|im_end|>"
    assert visual[ids == tokenizer.token_id("<IMG_CONTEXT>")].tolist() == list(range(9))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["internvl2", "internvl2_5"])
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_the_chat_template_equals_our_rendering(tokenizer, tmp_path, name, system):
    auto = pytest.importorskip("transformers").AutoTokenizer
    tokenizer.save(tmp_path, TEMPLATES[name])
    reference = auto.from_pretrained(tmp_path)
    turns = [Turn("user", "<image>\nIt's what?"), Turn("assistant", "17"), Turn("user", "Sure?")]
    turns = [Turn("system", system), *turns] if system else turns
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    parts = [dict(message) for message in messages]
    parts[-3]["content"] = [{"type": "image"}, {"type": "text", "text": "It's what?"}]
    ids = _tokenise(render(turns, TEMPLATES[name], [6], open_turn=True), tokenizer).ids
    for form in (messages, parts):
        text = reference.apply_chat_template(form, tokenize=False, add_generation_prompt=True)
        text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 6 + "</img>")
        assert reference(text)["input_ids"] == ids.tolist()
