import json

import pytest
import tokenizers

from tests import tiny
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Border, Tokenizer, added_tokens
from vlm_jax.errors import UserError

TEXTS = [
    "What is the total?\n\n 128.50",
    "<img><IMG_CONTEXT></img> é ﬁ 東京  x",
    "<|im_start|>user\n1, 2 don't<|im_end|>",
]


@pytest.fixture
def old_form(tmp_path):
    """The tests' tokenizer as releases before `tokenizer.json` have it."""
    content = json.loads(tiny.tokenizer().to_json())
    model = content["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    return tmp_path


def test_vocabulary_and_merges(old_form):
    tokenizer = Tokenizer.load(old_form)
    assert tokenizer.vocab_size == tiny.tokenizer().vocab_size
    for token in added_tokens(TEMPLATES["internvl2"]):
        assert tokenizer.token_id(token) == tiny.tokenizer().token_id(token)
    for text in TEXTS:
        for control in (True, False):
            assert tokenizer.encode_pieces([(text, control)]) == tiny.tokenizer().encode_pieces([(text, control)])


@pytest.mark.torch
def test_equals_transformers(old_form):
    transformers = pytest.importorskip("transformers")
    added = json.loads((old_form / "added_tokens.json").read_text())
    reference = transformers.Qwen2Tokenizer.from_pretrained(old_form)
    reference.add_tokens([transformers.AddedToken(token, special=True) for token in sorted(added, key=added.get)])
    for text in TEXTS:
        assert Tokenizer.load(old_form).encode_pieces([(text, True)]) == reference.encode(text), text


def test_ids_that_do_not_fit_are_refused(old_form):
    path = old_form / "added_tokens.json"
    added = json.loads(path.read_text())
    path.write_text(json.dumps(added | {"<late>": max(added.values()) + 7}))
    with pytest.raises(UserError, match=r"added_tokens\.json: token '<late>' should have id \d+, .* gives it \d+"):
        Tokenizer.load(old_form)


def test_the_list_in_the_config_is_read_too(old_form):
    """Folders since transformers 4.34 say there which tokens take the white space beside them."""
    added = json.loads((old_form / "added_tokens.json").read_text())
    (old_form / "added_tokens.json").unlink()
    decoder = {str(number): {"content": token, "special": True} for token, number in added.items()}
    decoder[str(added["<|im_end|>"])] |= {"lstrip": True, "rstrip": True}
    (old_form / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = Tokenizer.load(old_form)
    assert {token: tokenizer.token_id(token) for token in added} == added
    stop = tokenizer.token_id("<|im_end|>")
    pieces = [("<|im_start|>a \n", True), (" ", False), ("<|im_end|>\n", True), ("  b ", False)]
    whole = tokenizer.encode_pieces(pieces)
    assert whole == [tokenizer.token_id("<|im_start|>"), *tokenizer.encode("a"), stop, *tokenizer.encode("b ")]
    # In two calls the second still knows that the white space before it was taken.
    first, before = tokenizer.encode_behind(Border.START, pieces[:3])
    assert whole == first + tokenizer.encode_behind(before, pieces[3:])[0]


def test_nothing_is_put_around_a_text(old_form, tmp_path):
    """Llama's tokenizer.json adds <s>; the templates have it already."""
    content = json.loads(tiny.tokenizer().to_json())
    start = {"id": "<|im_start|>", "ids": [tiny.tokenizer().token_id("<|im_start|>")], "tokens": ["<|im_start|>"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": start},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a").tokens[0] == "<|im_start|>"
    Tokenizer.load(tmp_path).save(tmp_path / "out")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert saved.encode("a").ids == tiny.tokenizer().encode("a")
