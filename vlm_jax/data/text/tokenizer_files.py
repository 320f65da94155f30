"""Tokenizers as released folders hold them, in three forms.

`tokenizer.json`; or the older vocabulary and merges of byte-level BPE, as Qwen2's releases have them; or
SentencePiece's `tokenizer.model`, as those of InternLM2, Llama and Phi-3 do. Added tokens of the latter two come from
`tokenizer_config.json` and `added_tokens.json`. No code of a folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from vlm_jax.data.text.sentencepiece_files import read_sentencepiece
from vlm_jax.errors import UserError

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2 cuts text into before merging (`PRETOKENIZE_REGEX` in `models/qwen2/` of `transformers`)."""


def byte_level_bpe(model: models.BPE) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer with Qwen2's splitting, without added tokens."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder.

    Raises:
      UserError: naming the file that is missing, unreadable, damaged or in a form that is not known.
    """
    path = folder / "tokenizer.json"
    if not path.exists() and (folder / "tokenizer.model").exists():
        added, source = _read_added(folder)
        config = read_object(folder / "tokenizer_config.json")
        return read_sentencepiece(folder / "tokenizer.model", added, config, source)
    if not path.exists() and (folder / "vocab.json").exists():
        return _from_vocabulary(folder)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the tokenizer: {getattr(error, 'strerror', error)}") from None
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  (the library raises bare `Exception` on a malformed file)
        raise UserError(f"{path}: not a tokenizer: {error}") from None
    # What would put tokens of its own (<s>) around every text: templates say which tokens a prompt has.
    if backend.num_special_tokens_to_add(False):
        backend.post_processor = None
    return backend


def _from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """`vocab.json` and `merges.txt`, with the added tokens at exactly the ids that their file gives."""
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # noqa: BLE001  (as above)
        raise UserError(f"{folder}: vocab.json and merges.txt are not a tokenizer: {error}") from None
    backend = byte_level_bpe(model)
    added, source = _read_added(folder)
    for number, token in sorted(added.items()):
        backend.add_tokens([token])
        given = backend.token_to_id(token.content)
        if given != number:
            raise UserError(
                f"{source}: token '{token.content}' should have id {number}, the vocabulary gives it {given}"
            )
    return backend


def _read_added(folder: Path) -> tuple[dict[int, AddedToken], str]:
    """Added tokens by id, and the file that lists them.

    That is `tokenizer_config.json`, or `added_tokens.json` in older folders. The first says of each token whether it
    takes white space beside it (`lstrip`, `rstrip`) and whether it is special.
    """
    path = folder / "tokenizer_config.json"
    listed = read_object(path).get("added_tokens_decoder") or {}
    extra_path = folder / "added_tokens.json"
    extra = read_object(extra_path)
    added: dict[int, AddedToken] = {}
    try:
        for number, entry in listed.items():
            added[int(number)] = AddedToken(
                entry["content"],
                special=bool(entry.get("special", True)),
                normalized=False,
                **{key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word")},
            )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: added_tokens_decoder must map ids to tokens with a 'content'") from None
    ids = {token.content: number for number, token in added.items()}
    if len(ids) < len(added):
        twice = next(token.content for number, token in added.items() if ids[token.content] != number)
        raise UserError(f"{path}: added_tokens_decoder gives token '{twice}' two ids")
    for token, number in extra.items():
        if not isinstance(number, int):
            raise UserError(f"{extra_path}: the id of token '{token}' must be a number, got {number!r}")
        held = ids.get(token, number)
        if held != number:
            raise UserError(f"{extra_path}: token '{token}' has id {number}, but {held} in {path.name}")
        if number in added and added[number].content != token:
            raise UserError(f"{extra_path}: tokens '{token}' and '{added[number].content}' have the same id {number}")
        added.setdefault(number, AddedToken(token, special=True, normalized=False))
    for number, token in added.items():
        if number < 0 or not token.content:
            raise UserError(f"{path if listed else extra_path}: no token can be '{token.content}' with id {number}")
        if token.single_word:
            raise UserError(f"{path}: token '{token.content}' is only found as a whole word, which is not supported")
    return added, str(path if listed else extra_path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold an object, got {type(content).__name__}")
    return content
