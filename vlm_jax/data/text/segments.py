"""The text between added tokens, to ids and back.

Tokenizers that come from SentencePiece put "▁" before a text: before the prompt alone, or before every stretch of text
between added tokens. A stretch that goes on where another call stopped must have none. `tokenizers` decides by the
call, so there are two tokenizers here, one of which never does.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Segments:
    """Encodes stretches of text in which added tokens have been found already, and decodes ids."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wraps `backend`, on which the recognition of special tokens in text is turned off."""
        # Special tokens in text are text. This setting is not serialised, so it is made anew on every construction.
        backend.encode_special_tokens = True
        self._backend = backend
        self._bare = backend
        prefixes: set[str] = set()
        parts = {key: _state(getattr(backend, key)) for key in ("normalizer", "pre_tokenizer")}
        bare = {key: _without_prefix(part, prefixes) for key, part in parts.items()}
        self._always = "always" in prefixes
        if prefixes:
            content = json.loads(backend.to_str()) | bare
            self._bare = tokenizers.Tokenizer.from_str(json.dumps(content))
            self._bare.encode_special_tokens = True
        decoder = json.dumps(_state(backend.decoder))
        self._falls_back, self._strips = "ByteFallback" in decoder, '"Strip"' in decoder
        # System prompts and common questions come again and again.
        self._encode = functools.lru_cache(maxsize=4096)(self._encode_now)

    def encode(self, text: str, *, at_start: bool, in_text: bool) -> list[int]:
        """Ids of a stretch of text.

        Args:
          text: has no added token in it, except such as are to be read as ordinary characters.
          at_start: nothing stands before it.
          in_text: other text stands before it, not an added token.
        """
        return list(self._encode(text, at_start or (self._always and not in_text)))

    def _encode_now(self, text: str, prefix: bool) -> tuple[int, ...]:
        return tuple((self._backend if prefix else self._bare).encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        if not self._falls_back:
            return self._backend.decode(ids, skip_special_tokens=False)
        tokens = [token for token in map(self._backend.id_to_token, ids) if token is not None]
        text, start = "", 0
        for stop in [i for i, token in enumerate(tokens) if token in self._cuts] if self._always else []:
            # Every stretch has had its own "▁", which goes again.
            text += self._join(tokens[start:stop]) + tokens[stop]
            start = stop + 1
        return text + self._join(tokens[start:])

    def _join(self, tokens: list[str]) -> str:
        if self._strips and tokens and not tokens[0].startswith(_SPACE):
            tokens = [_SPACE, *tokens]  # only a "▁" goes again, not a space that came as a byte
        return self._backend.decoder.decode(_with_whole_characters(tokens))

    @functools.cached_property
    def _cuts(self) -> set[str]:
        added = self._backend.get_added_tokens_decoder().values()
        return {token.content for token in added if token.special or not token.normalized}


def _state(component: Any) -> Any:
    """A component of a tokenizer as it stands in `tokenizer.json`."""
    return None if component is None else json.loads(component.__getstate__())


def _without_prefix(node: Any, found: set[str]) -> Any:
    """A normaliser or pre-tokenizer without what puts "▁" before a text; adds to `found` when that is done."""
    if isinstance(node, list):
        return [step for step in (_without_prefix(item, found) for item in node) if step is not None]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend" or (node.get("type") == "Replace" and _is_insertion(node)):
        found.add("always")
        return None
    if node.get("type") == "Metaspace" and node.get("prepend_scheme") in ("first", "always"):
        found.add(node["prepend_scheme"])
        return node | {"prepend_scheme": "never"}
    return {key: _without_prefix(value, found) for key, value in node.items()}


def _is_insertion(node: dict[str, Any]) -> bool:
    """Whether a `Replace` puts "▁" before a text, as `sentencepiece_files` writes it for models with symbols."""
    return node.get("content") == _SPACE and str(node["pattern"].get("Regex", "")).startswith(r"\A(?!")


def _with_whole_characters(tokens: list[str]) -> list[str]:
    """Tokens in which every byte that is no part of a character is a replacement character.

    The library gives up on a whole run of bytes when one does not fit, SentencePiece only on that byte; a text that was
    cut off by its length ends in such a run.
    """
    mended = list(tokens)
    run: list[int] = []
    for place, token in enumerate([*tokens, ""]):
        byte = _BYTE.fullmatch(token)
        if byte:
            run.append(int(byte[1], 16))
            continue
        for bad in _bad_bytes(bytes(run)):
            mended[place - len(run) + bad] = "�"
        run = []
    return mended


def _bad_bytes(data: bytes) -> list[int]:
    """Places of the bytes that are no part of a character in UTF-8."""
    bad: list[int] = []
    start = 0
    while start < len(data):
        try:
            data[start:].decode()
            break
        except UnicodeDecodeError as error:
            bad.append(start + error.start)
            start += error.start + 1
    return bad
