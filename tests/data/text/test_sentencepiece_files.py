"""The oracle is the library `sentencepiece` itself: it trains the models here, and its ids must be ours."""

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.data.text.sentencepiece_models import TEXTS, entry, processor, slow, train, write
from vlm_jax.data.conversation import Turn
from vlm_jax.data.prepare import _tokenise
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Border, Tokenizer
from vlm_jax.errors import UserError

SYMBOLS = ["[UNUSED_1]", "[UNUSED_2]", "[UNUSED_23]", "[UNUSED_234]"]
NINE = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]

WORDS = st.sampled_from(
    SYMBOLS
    + "|  |    |▁|\n|\t|total| the|is|128|哈|哈哈哈|上海|京は|Привет|[UNUSED_|--|===|é|🦓|\0|dog|a|b|o".split("|")  # noqa: SIM905
    + [" ", "<s>", "</s>", "<unk>", "<0x41>", "<|im_end|>"]
)
WRITTEN = st.lists(WORDS | st.text(max_size=4), max_size=12).map("".join)


MODELS = {
    f"{'prefix' if prefix else 'plain'}-{'remove' if remove else 'keep'}-{'symbols' if symbols else 'none'}": dict(
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=remove,
        user_defined_symbols=SYMBOLS if symbols else [],
    )
    for prefix in (True, False)
    for remove in (True, False)
    for symbols in (True, False)
}


@pytest.fixture(scope="module")
def proto():
    made = {}

    def get(name: str) -> ModelProto:
        if name not in made:
            made[name] = train(**MODELS[name])
        copy = ModelProto()
        copy.CopyFrom(made[name])
        return copy

    return get


@pytest.fixture(scope="module", params=MODELS)
def pair(request, proto, tmp_path_factory):
    """Our tokenizer and SentencePiece, of one file."""
    model = proto(request.param)
    tokenizer = Tokenizer.load(write(tmp_path_factory.mktemp("model"), model))
    return tokenizer, processor(model), request.param


@settings(max_examples=150)
@given(text=WRITTEN)
def test_encodes_as_sentencepiece(pair, text):
    tokenizer, oracle, name = pair
    # What `tokenizers` cannot say: see `_prepend`.
    assume(not (name.startswith("prefix") and text.strip(" ") in SYMBOLS))
    assert tokenizer.encode(text) == oracle.encode(text)


@settings(max_examples=100)
@given(data=st.data())
def test_decodes_as_sentencepiece(pair, data):
    tokenizer, oracle, name = pair
    ids = data.draw(st.lists(st.integers(3, oracle.get_piece_size() - 1), max_size=12))
    # Where it removes extra spaces, SentencePiece drops one of every piece at the start; no text has such ids.
    assume("remove" not in name or not "".join(map(oracle.id_to_piece, ids)).startswith("▁▁"))
    assert tokenizer.decode(ids) == oracle.decode(ids)


def test_bytes_that_are_no_character(proto, tmp_path):
    model = proto("plain-keep-none")
    tokenizer, oracle = Tokenizer.load(write(tmp_path, model)), processor(model)
    byte = {i: oracle.piece_to_id(f"<0x{i:02X}>") for i in range(256)}
    for data in ("中".encode() + b"\xe4", b"\xff" + "é".encode() + b"\x80\x80", b"\xe4\xb8", "🦓".encode()[:3] + b"a"):
        ids = [byte[value] for value in data]
        assert tokenizer.decode(ids) == oracle.decode(ids)
    assert tokenizer.decode([byte[value] for value in "中".encode() + b"\xe4"]) == "中�"


def test_a_space_that_comes_as_a_byte_stays(proto, tmp_path):
    model = proto("prefix-keep-none")
    tokenizer, oracle = Tokenizer.load(write(tmp_path, model)), processor(model)
    for pieces in (["<0x20>", "a"], ["▁", "<0x20>", "a"], ["▁", "▁", "a"], ["a"]):
        ids = [oracle.piece_to_id(piece) for piece in pieces]
        assert tokenizer.decode(ids) == oracle.decode(ids)


@pytest.mark.parametrize("first", ["ab", "bc"])
def test_of_equal_scores_the_leftmost_is_merged(proto, tmp_path, first):
    """As in InternLM2's file, in which two thousand pieces share their score with another."""
    model = proto("plain-keep-none")
    for name in (first, "bc" if first == "ab" else "ab", "aa", "aaa"):
        if name not in {piece.piece for piece in model.pieces}:
            model.pieces.add(piece=name, type=1)
        next(piece for piece in model.pieces if piece.piece == name).score = 5.0
    tokenizer, oracle = Tokenizer.load(write(tmp_path, model)), processor(model)
    for text in ("abc", "abcbc", "bcab", "aaaaaaa", "aabcaa", "baaab", "cabcabc"):
        assert tokenizer.encode(text) == oracle.encode(text), text
    assert oracle.encode("abc", out_type=str) == ["ab", "c"]


def test_symbols_of_one_character_never_merge(proto, tmp_path):
    """As InternLM2's full-width letters."""
    model = proto("plain-keep-none")
    next(piece for piece in model.pieces if piece.piece == "哈").type = 4
    assert "哈哈" in {piece.piece for piece in model.pieces}
    tokenizer, oracle = Tokenizer.load(write(tmp_path, model)), processor(model)
    assert tokenizer.encode("a 哈哈哈哈b") == oracle.encode("a 哈哈哈哈b")


def internlm2(folder, proto):
    """The layout of Mini-InternVL-2B: control tokens in the places of unused pieces, nine more behind."""
    model = proto("plain-keep-symbols")
    places = {piece.piece: number for number, piece in enumerate(model.pieces)}
    size = len(model.pieces)
    added = {0: entry("<unk>"), 1: entry("<s>"), 2: entry("</s>")}
    added |= {places["[UNUSED_23]"]: entry("<|im_end|>"), places["[UNUSED_234]"]: entry("<|im_start|>")}
    added |= {size + i: entry(token) for i, token in enumerate(NINE)}
    config = dict(tokenizer_class="InternLM2Tokenizer", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return write(folder, model, added, **config), model, added


def phi3(folder, proto):
    """The layout of Mini-InternVL-4B, whose tokens take the white space behind them."""
    model = proto("prefix-keep-none")
    size = len(model.pieces)
    added = {0: entry("<unk>"), 1: entry("<s>"), 2: entry("</s>", special=False, rstrip=True)}
    for token in ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>"):
        added[len(added) - 3 + size] = entry(token, rstrip=True)
    added |= {size + 4 + i: entry(token) for i, token in enumerate(NINE)}
    return write(folder, model, added, tokenizer_class="LlamaTokenizer", legacy=False), model, added


def vicuna(folder, proto):
    """Llama's older kind, which puts "▁" behind every added token; one of them takes the white space before it."""
    model = proto("prefix-keep-none")
    size = len(model.pieces)
    added = {0: entry("<unk>"), 1: entry("<s>"), 2: entry("</s>", lstrip=True)}
    added |= {size + i: entry(token) for i, token in enumerate(NINE)}
    return write(folder, model, added, tokenizer_class="LlamaTokenizer", bos_token="<s>", legacy=True), model, added


LAYOUTS = {"internlm2": internlm2, "phi3": phi3, "vicuna": vicuna}


@pytest.fixture(scope="module", params=LAYOUTS)
def released(request, proto, tmp_path_factory):
    """A folder as released, our tokenizer of it, and what the slow tokenizer makes of a whole prompt."""
    folder, model, added = LAYOUTS[request.param](tmp_path_factory.mktemp(request.param), proto)
    return folder, Tokenizer.load(folder), slow(model, added, legacy=request.param != "phi3")


PROMPTS = [
    "<s><|im_start|>system\n你是由上海<|im_end|><|im_start|>user\n<img><IMG_CONTEXT></img>\n the total?<|im_end|>",
    "<|system|>\nYou.<|end|><|user|>\n <img><IMG_CONTEXT></img>\nis <ref>dog</ref><|end|><|assistant|>\n Yes.<|end|>",
    "<s>A chat. USER: <img></img>\nis <ref>the dog</ref> <box>[[1, 2]]</box>? ASSISTANT: Yes. </s>USER: a  </s> b",
    "The total <|end|>  </s>  <|user|>\n\n<|user|>  x",
    " leading",
]


def test_prompts_as_the_slow_tokenizers_have_them(released):
    _, tokenizer, reference = released
    for prompt in PROMPTS[:-1]:
        assert tokenizer.encode_pieces([(prompt, True)]) == reference(prompt), prompt


@settings(max_examples=100)
@given(words=st.lists(st.sampled_from([*NINE, "<s>", "</s>", "<|user|>", "<|im_end|>", "\n"]) | WRITTEN, max_size=8))
def test_any_prompt(released, words):
    _, tokenizer, reference = released
    prompt = "<s>" + "".join(words)
    assume("▁" not in prompt)  # the slow tokenizers take one that is typed for a space, in some places
    assume("[UNUSED_23" not in prompt)  # typed, the slow tokenizer would make <|im_end|> of it
    assert tokenizer.encode_pieces([(prompt, True)]) == reference(prompt)


@pytest.mark.parametrize("border", ["\n", "img>", "<ref>"])
def test_a_prompt_in_two_calls(released, border):
    """The second call knows whether it goes on in a text, in which nothing is put before it."""
    _, tokenizer, reference = released
    for prompt in [prompt for prompt in PROMPTS if border in prompt]:
        cut = prompt.index(border) + len(border)
        first, before = tokenizer.encode_behind(Border.START, [(prompt[:cut], True)])
        assert first + tokenizer.encode_behind(before, [(prompt[cut:], True)])[0] == reference(prompt), prompt


def test_ids_are_those_of_the_folder(released):
    folder, tokenizer, _ = released
    listed = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for number, token in listed.items():
        assert tokenizer.token_id(token["content"]) == int(number)
    assert tokenizer.vocab_size == max(map(int, listed)) + 1
    assert tokenizer.token_id("<IMG_CONTEXT>") == max(map(int, listed)) - 6


def test_control_tokens_cannot_be_typed(released):
    folder, tokenizer, _ = released
    listed = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    markup = {number for number, token in listed.items() if re.search("ref|box|quad", token["content"])}
    control = {int(number) for number in listed.keys() - markup}
    for token in [token["content"] for token in listed.values()] + SYMBOLS:
        for text in (token, f"a {token} b", f"{token} "):
            assert not control & set(tokenizer.encode(text)), text
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["<ref>a dog</ref><box>[[1, 2]]</box> is there", "a <ref> a </ref> 🦓", "Yes", "Yes  "]
)
def test_markup_survives(released, text):
    _, tokenizer, _ = released
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_prompt_in_several_calls(released):
    """Behind a header that ends in text an answer has no "▁" of its own, behind a token it has what the rule says."""
    _, tokenizer, reference = released
    turns = [
        Turn("user", "<image>\nIs this a dog?"),
        Turn("assistant", "Yes, <ref>a dog</ref>."),
        Turn("user", "  Total?\n"),
        Turn("assistant", "128.50"),
    ]
    for stop, template in (("<|im_end|>", "internlm2-chat"), ("<|end|>", "phi3")):
        if not tokenizer._backend.token_to_id(stop):
            continue
        spans = render(turns, TEMPLATES[template], [2])
        got = _tokenise(spans, tokenizer)
        prompt = "".join(span.text * max(span.placeholders, 1) for span in spans)
        # Its pieces do not reach over a line's end, so the borders of the answers change nothing.
        assert got.ids.tolist() == reference(prompt)
        assert tokenizer.decode(got.ids[got.supervised]) == "Yes, <ref>a dog</ref>.128.50"


def test_branches_go_on_where_the_shared_part_ends(proto, tmp_path):
    _, model, added = phi3(tmp_path, proto)
    turns = [Turn("user", "<image>\nIs it?"), Turn("assistant", "Yes."), Turn("user", "Row 2?"), Turn("assistant", "3")]
    spans = render(turns, TEMPLATES["phi3"], [1], independent=True)
    got = _tokenise(spans, Tokenizer.load(tmp_path))
    for branch in (1, 2):
        alone = "".join(span.text for span in spans if span.branch in (0, branch))
        seen = got.ids[(got.branches == 0) | (got.branches == branch)]
        assert seen.tolist() == slow(model, added, legacy=False)(alone)


@pytest.mark.torch
def test_transformers_reads_what_we_save(released, tmp_path):
    auto = pytest.importorskip("transformers").AutoTokenizer
    _, tokenizer, _ = released
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).to_json() == tokenizer.to_json()
    saved = auto.from_pretrained(tmp_path)
    assert len(saved) == tokenizer.vocab_size
    for prompt in PROMPTS:
        ids = tokenizer.encode_pieces([(prompt, True)])
        assert Tokenizer.load(tmp_path).encode_pieces([(prompt, True)]) == ids
        assert saved(prompt)["input_ids"] == ids, prompt
    for text in map(str.strip, TEXTS):
        ids = tokenizer.encode(text)
        assert "<ref>" in text or saved(text)["input_ids"] == ids
        assert "<ref>" in text or saved.decode(ids) == tokenizer.decode(ids) == text


@pytest.mark.torch
def test_equals_the_conversion_of_transformers(proto, tmp_path):
    transformers = pytest.importorskip("transformers")
    phi3(tmp_path, proto)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path, add_bos_token=False)
    for prompt in PROMPTS:
        assert Tokenizer.load(tmp_path).encode_pieces([(prompt, True)]) == theirs(prompt)["input_ids"], prompt


def test_older_folders_without_a_list(proto, tmp_path):
    """`added_tokens.json` alone, as before transformers 4.34; control pieces of the model are control tokens."""
    model = proto("prefix-keep-none")
    size = len(model.pieces)
    write(tmp_path, model)
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: size + i for i, token in enumerate(NINE)}))
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.token_id(token) for token in NINE] == list(range(size, size + 9))
    assert tokenizer.encode_pieces([("<s><img>", True)]) == [1, size]
    assert tokenizer.encode("<ref>")[0] == size + 5


def test_without_byte_fallback(tmp_path):
    model = train(byte_fallback=False, vocab_size=260, add_dummy_prefix=False, remove_extra_whitespaces=False)
    tokenizer, oracle = Tokenizer.load(write(tmp_path, model)), processor(model)
    for text in ("The total", "🦓🦓 total", "x🦓"):
        assert tokenizer.encode(text) == oracle.encode(text)


def with_model(**changes):
    def change(model: ModelProto) -> None:
        for name, value in changes.items():
            spec, field = name.split("__")
            setattr(getattr(model, spec), field, value)

    return change


def twice(model):
    model.pieces[400].piece = model.pieces[401].piece


def unused(model):
    model.pieces[400].type = 5


def missing_byte(model):
    model.pieces[10].type = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_model(trainer_spec__model_type=1), "it is a UNIGRAM model, only BPE is read; add a tokenizer.json"),
        (with_model(normalizer_spec__precompiled_charsmap=b"x", normalizer_spec__name="nfkc"), r"by rules \(nfkc\)"),
        (with_model(denormalizer_spec__precompiled_charsmap=b"x"), "normalises decoded text"),
        (with_model(trainer_spec__treat_whitespace_as_suffix=True), "treat_whitespace_as_suffix"),
        (with_model(normalizer_spec__escape_whitespaces=False), "escape_whitespaces"),
        (unused, "1 pieces of type UNUSED"),
        (twice, "damaged SentencePiece model: 1 pieces are there twice"),
        (missing_byte, "255 of 256 are there"),
        (lambda model: model.ClearField("pieces"), "it has no pieces"),
    ],
)
def test_models_that_are_refused(proto, tmp_path, change, message):
    model = proto("plain-keep-none")
    change(model)
    with pytest.raises(UserError, match=rf"tokenizer\.model: .*{message}") as caught:
        Tokenizer.load(write(tmp_path, model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda x: x[:-7], lambda x: b"x", lambda x: b"", lambda x: b"\xff" * 99])
def test_damaged_files(proto, tmp_path, damage):
    (tmp_path / "tokenizer.model").write_bytes(damage(proto("plain-keep-none").SerializeToString()))
    with pytest.raises(UserError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            {520: entry("<a>"), 522: entry("<b>")},
            r"token '<b>' should have id 522, .* the 520 pieces of tokenizer\.model",
        ),
        ({700: entry("<a>")}, "token '<a>' should have id 700"),
        ({400: entry("<a>")}, "token '<a>' has id 400, where the piece"),
        ({30: entry("<a>")}, "token '<a>' has id 30, where the piece '<0x1B>' is"),
        ({520: entry("<s>")}, "token '<s>' has id 520, but piece 1 has that name"),
        ({-1: entry("<a>")}, "no token can be '<a>' with id -1"),
        ({520: entry("")}, "no token can be '' with id 520"),
        ({520: entry("<a>"), 521: entry("<a>")}, "gives token '<a>' two ids"),
        ({520: entry("<a>", single_word=True)}, "only found as a whole word"),
        ({"x": entry("<a>")}, "must map ids to tokens"),
        ({520: {"text": "<a>"}}, "must map ids to tokens"),
        ({520: "<a>"}, "must map ids to tokens"),
    ],
)
def test_ids_that_cannot_be(proto, tmp_path, added, message):
    write(tmp_path, proto("plain-keep-none"), added)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: .*{message}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"<a>": "520"}', "the id of token '<a>' must be a number, got '520'"),
        ('{"<a>": 521}', r"token '<a>' has id 521, but 520 in tokenizer_config\.json"),
        ('{"<b>": 520}', "tokens '<b>' and '<a>' have the same id 520"),
        ("[1]", "must hold an object, got list"),
        ("{", "cannot read it"),
    ],
)
def test_lists_that_contradict(proto, tmp_path, text, message):
    write(tmp_path, proto("plain-keep-none"), {520: entry("<a>")})
    (tmp_path / "added_tokens.json").write_text(text)
    with pytest.raises(UserError, match=rf"added_tokens\.json: {message}"):
        Tokenizer.load(tmp_path)
