"""Tokenizers as released folders hold them: `tokenizer.json`, or the older vocabulary and merges of byte-level BPE.

No code of a folder is run. InternLM2's SentencePiece file is not read yet.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

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
      UserError: naming the file that is missing, unreadable or in a form that is not known.
    """
    path = folder / "tokenizer.json"
    if not path.exists() and (folder / "vocab.json").exists():
        return _from_vocabulary(folder)
    if not path.exists() and (folder / "tokenizer.model").exists():
        raise UserError(
            f"{folder}: the tokenizer is only there as tokenizer.model (SentencePiece); add a tokenizer.json "
            "(`AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  (the library raises bare `Exception` on a malformed file)
        raise UserError(f"{path}: not a tokenizer: {error}") from None


def _from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """`vocab.json` and `merges.txt`, with the tokens of `added_tokens.json` at exactly the ids that it gives."""
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # noqa: BLE001  (as above)
        raise UserError(f"{folder}: vocab.json and merges.txt are not a tokenizer: {error}") from None
    backend = byte_level_bpe(model)
    path = folder / "added_tokens.json"
    try:
        added: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        ordered = sorted(added, key=lambda token: added[token])
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    for token in ordered:
        backend.add_tokens([AddedToken(token, special=True, normalized=False)])
        if backend.token_to_id(token) != added[token]:
            raise UserError(
                f"{path}: token '{token}' should have id {added[token]}, the vocabulary gives it "
                f"{backend.token_to_id(token)}"
            )
    return backend
