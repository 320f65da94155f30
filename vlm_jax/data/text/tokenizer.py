"""The tokenizer: `tokenizers` inside, the Hugging Face folder layout outside, and one rule about special tokens.

Two kinds of added tokens exist. *Control* tokens (`<|im_end|>`, `<img>`, ...) carry the structure of a prompt: they are
recognised only in text that the program wrote (`encode_pieces` with `control`), never in what a person or a data set
wrote, and `decode` drops them. *Mark-up* tokens (`<ref>`, `<box>`, `<quad>` and their ends) are part of what people and
models write: they are recognised everywhere and survive `decode`. Released InternVL tokenizers flag both kinds as
special; `load` sets the mark-up free.
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from vlm_jax.data.text.jinja import to_jinja
from vlm_jax.data.text.segments import Segments
from vlm_jax.data.text.templates import MARKUP, TEMPLATES, Template
from vlm_jax.data.text.tokenizer_files import byte_level_bpe, read_backend, read_object
from vlm_jax.errors import UserError
from vlm_jax.files import write_json

_PAD = "<|endoftext|>"


def added_tokens(template: Template) -> tuple[str, ...]:
    """All added tokens of a tokenizer that is trained for a prompt format, in the order of their ids.

    The ids follow the base vocabulary. The first pads.
    """
    return tuple(dict.fromkeys((_PAD, *template.control, *template.image_tokens, *template.markup, "<video>")))


class Border(enum.Enum):
    """What stands before a piece of text, on which its first tokens may depend."""

    START = "the prompt begins here"
    TOKEN = "an added token"
    EATER = "an added token that takes the white space behind it"
    TEXT = "other text"


class Tokenizer:
    """Text to ids and back. Instances are immutable in use, can be pickled, and may be shared by threads.

    Attributes:
      vocab_size: number of ids, added tokens included.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        """Wraps `backend`; `config` holds the entries of `tokenizer_config.json` that a save should keep."""
        self._backend = _with_free_markup(backend)
        self._segments = Segments(self._backend)
        self._config = dict(config or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer._from_json, (self._backend.to_str(), self._config)

    @classmethod
    def _from_json(cls, text: str, config: dict[str, Any]) -> Tokenizer:
        return cls(tokenizers.Tokenizer.from_str(text), config)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads a folder's tokenizer and, if there is one, its `tokenizer_config.json`.

        The tokenizer is `tokenizer.json`, or SentencePiece's `tokenizer.model`, or `vocab.json` and `merges.txt`.

        Raises:
          UserError: there is none, or it is in another form or damaged.
        """
        folder = Path(folder)
        return cls(read_backend(folder), _read_config(folder / "tokenizer_config.json"))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, template: Template = TEMPLATES["internvl2"]) -> Tokenizer:
        """Trains a byte-level BPE tokenizer with Qwen2's splitting (numbers go digit by digit).

        Args:
          texts: the training text; added tokens in it are not learned from. Equal texts give equal tokenizers.
          vocab_size: upper limit on the number of ids, added tokens included; at least 256 and `added_tokens`.
          template: the prompt format whose tokens are added.

        Raises:
          UserError: `vocab_size` does not hold the 256 bytes and the added tokens.
        """
        added = added_tokens(template)
        smallest = 256 + len(added)
        if vocab_size < smallest:
            raise UserError(f"vocab_size: must be at least {smallest} (bytes and special tokens), got {vocab_size}")
        backend = byte_level_bpe(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(added),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_without(added, texts), trainer)
        for token in added:  # one by one: a call adds tokens of one kind, and the order of the ids is fixed
            backend.add_tokens([AddedToken(token, special=token not in MARKUP, normalized=False)])
        stop = template.stop if template.stop in added else _PAD
        return cls(backend, {"eos_token": stop, "pad_token": _PAD})

    def with_image_tokens(self, template: Template = TEMPLATES["internvl2"]) -> Tokenizer:
        """The same tokenizer with the tokens of a prompt format behind its vocabulary: images, grounding, turns.

        Those that it has already stay where they are. Order of the ids of InternVL's nine tokens for images and
        grounding: `internvl/train/internvl_chat_finetune.py`.
        """
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        for token in (*template.image_tokens, *template.markup, *template.control):
            if backend.token_to_id(token) is None:
                backend.add_tokens([AddedToken(token, special=token not in MARKUP, normalized=False)])
        return Tokenizer(backend, self._config)

    def save(self, folder: str | Path, template: Template = TEMPLATES["internvl2"]) -> None:
        """Writes a folder that `transformers.AutoTokenizer` reads: the tokenizer, its tokens by name, a chat template.

        Args:
          folder: created if missing; its `tokenizer*.json`, `special_tokens_map.json` and `chat_template.jinja` are
            replaced.
          template: the prompt format that `chat_template.jinja` renders. Its image tokens get the names by which the
            processors of `transformers` ask for them (InternVL's three where it surrounds images, else LLaVA's one).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = {
            "start_image_token": template.image_start,
            "end_image_token": template.image_end,
            "context_image_token" if template.image_start else "image_token": template.image_context,
            "video_token": "<video>",
        }
        # A piece of the vocabulary is not named: it would become an added token, and text beside it other tokens.
        named = {key: token for key, token in named.items() if self._backend.token_to_id(token) in self._added}
        main = {key: self._config[key] for key in ("bos_token", "eos_token", "pad_token") if self._config.get(key)}
        config = {
            "model_max_length": 32768,
            **self._config,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # Else `transformers` before 5.0 adds `token_type_ids`, which `generate` refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            "extra_special_tokens": named,
        }
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", {**main, **named})
        (folder / "chat_template.jinja").write_text(to_jinja(template), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: mark-up tokens are recognised, control tokens are ordinary characters."""
        return self.encode_pieces([(text, False)])

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of adjoining pieces of text at the start of a prompt, the same as of their concatenation.

        Args:
          pieces: (text, control); only in control text are control tokens recognised. Characters on both sides of a
            border may end up in one token, as they do where the reference tokenises the whole prompt.
        """
        return self.encode_behind(Border.START, pieces)[0]

    def encode_behind(self, before: Border, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], Border]:
        """Ids of pieces that stand behind others, and what stands before the next.

        A prompt that is encoded in several calls has the ids of the whole, except that no token lies across a border of
        two calls.

        Args:
          before: what the call for the pieces before gave.
          pieces: as in `encode_pieces`.
        """
        parts = self._split(pieces)
        ids: list[int] = []
        for part, following in zip(parts, [*parts, None][1:], strict=True):
            if isinstance(part, int):
                ids.append(part)
                before = Border.EATER if self._added[part].rstrip else Border.TOKEN
                continue
            if before is Border.EATER:
                part = part.lstrip()
            if isinstance(following, int) and self._added[following].lstrip:
                part = part.rstrip()
            if part:
                ids += self._segments.encode(part, at_start=before is Border.START, in_text=before is Border.TEXT)
                before = Border.TEXT
        return ids, before

    def _split(self, pieces: Sequence[tuple[str, bool]]) -> list[int | str]:
        """Pieces as the ids of added tokens and, between them, the text that adjoins."""
        parts: list[int | str] = []
        for text, control in pieces:
            pattern = self._control_pattern if control else self._markup_pattern
            for number, part in enumerate(pattern.split(text)):
                if number % 2:  # the separators
                    parts.append(self.token_id(part))
                elif parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part:
                    parts.append(part)
        return parts

    def token_id(self, token: str) -> int:
        """Id of one token.

        Raises:
          UserError: the vocabulary has no such token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer has no token '{token}'")
        return found

    def has(self, *tokens: str) -> bool:
        """Whether the vocabulary has all of these tokens."""
        return all(self._backend.token_to_id(token) is not None for token in tokens)

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token that `tokenizer_config.json` names, or else of `<|endoftext|>`, if there is one."""
        named = (self._config.get("pad_token"), _PAD)
        return next((self.token_id(token) for token in named if token is not None and self.has(token)), None)

    def stop_id(self, template: Template) -> int:
        """Id of the token at which generation stops in a prompt format.

        Raises:
          UserError: the vocabulary has no one token for the format's stop.
        """
        ids, _ = self.encode_behind(Border.TEXT, [(template.stop, True)])
        if len(ids) != 1 or self.decode(ids, skip_special=False) != template.stop:
            raise UserError(f"the tokenizer has no token {template.stop!r}, which ends an answer in '{template.name}'")
        return ids[0]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids. `skip_special` drops control tokens; mark-up always stays."""
        numbers = [int(number) for number in ids]
        if skip_special:
            numbers = [number for number in numbers if number not in self._added or not self._added[number].special]
        return self._segments.decode(numbers)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The tokenizer as the text of `tokenizer.json`; equal tokenizers have equal texts."""
        return self._backend.to_str()

    @functools.cached_property
    def _added(self) -> dict[int, AddedToken]:
        """Tokens that are found before the text between them is looked at, by id."""
        added = self._backend.get_added_tokens_decoder()
        return {number: token for number, token in added.items() if token.special or not token.normalized}

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return _any_of(token.content for token in self._added.values())

    @functools.cached_property
    def _markup_pattern(self) -> re.Pattern[str]:
        return _any_of(token.content for token in self._added.values() if not token.special)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens; a split by it keeps them."""
    # Longest first, so that a token that begins like another is not cut short.
    return re.compile("(" + ("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)") + ")")


def _with_free_markup(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with mark-up tokens not special. (`tokenizers` cannot change the flag of a known token.)"""
    added = backend.get_added_tokens_decoder().values()
    if not any(token.special and token.content in MARKUP for token in added):
        return backend
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        if token["content"] in MARKUP:
            token["special"] = False
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _without(tokens: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    pattern = re.compile("|".join(map(re.escape, tokens)))
    for text in texts:
        yield from pattern.split(text)


def _read_config(path: Path) -> dict[str, Any]:
    """The entries of `tokenizer_config.json` that remain true of a saved copy."""
    config = read_object(path)
    kept = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length"):
        value = config.get(key)
        kept[key] = value["content"] if isinstance(value, dict) else value
    return {key: value for key, value in kept.items() if value is not None}
