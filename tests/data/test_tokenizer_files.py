import json

import pytest

from tests import tiny
from vlm_jax.data.tokenizer import SPECIAL, Tokenizer
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
    for token in SPECIAL:
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


def test_sentencepiece_alone_says_what_to_do(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"tokenizer\.model \(SentencePiece\).*save_pretrained"):
        Tokenizer.load(tmp_path)
