"""The tokenizer: `tokenizers` inside, the Hugging Face folder layout outside, and one rule about special tokens.

Two kinds of added tokens exist. *Control* tokens (`<|im_end|>`, `<img>`, ...) carry the structure of a prompt: they are
recognised only in text that the program wrote (`encode_pieces` with `control`), never in what a person or a data set
wrote, and `decode` drops them. *Mark-up* tokens (`<ref>`, `<box>`, `<quad>` and their ends) are part of what people and
models write: they are recognised everywhere and survive `decode`. Released InternVL tokenizers flag both kinds as
special; `load` sets the mark-up free.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from vlm_jax.data.templates import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TEMPLATES, Template, to_jinja
from vlm_jax.data.tokenizer_files import byte_level_bpe, read_backend
from vlm_jax.errors import UserError

MARKUP = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Tokens that may be written in text: grounding mark-up, in InternVL's order."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *MARKUP, "<video>")
"""All added tokens of a trained tokenizer, in the order of their ids, which follow the base vocabulary."""


class Tokenizer:
    """Text to ids and back. Instances are immutable in use, can be pickled, and may be shared by threads.

    Attributes:
      vocab_size: number of ids, added tokens included.
      image_id: id of `<IMG_CONTEXT>`, which stands in the token row where a visual token goes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        """Wraps `backend`; `config` holds the entries of `tokenizer_config.json` that a save should keep."""
        self._backend = _with_free_markup(backend)
        # Special tokens in text are text. This setting is not serialised, so it is made anew on every construction.
        self._backend.encode_special_tokens = True
        self._config = dict(config or {})
        # System prompts and common questions come again and again.
        self._encode_part = functools.lru_cache(maxsize=4096)(self.encode)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer._from_json, (self._backend.to_str(), self._config)

    @classmethod
    def _from_json(cls, text: str, config: dict[str, Any]) -> Tokenizer:
        return cls(tokenizers.Tokenizer.from_str(text), config)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads a folder's tokenizer and, if there is one, its `tokenizer_config.json`.

        The tokenizer is `tokenizer.json`, or `vocab.json`, `merges.txt` and `added_tokens.json` in the form of Qwen2.

        Raises:
          UserError: there is none, or it is in another form or damaged.
        """
        folder = Path(folder)
        return cls(read_backend(folder), _read_config(folder / "tokenizer_config.json"))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Trains a byte-level BPE tokenizer with Qwen2's splitting (numbers go digit by digit).

        Args:
          texts: the training text; added tokens in it are not learned from. Equal texts give equal tokenizers.
          vocab_size: upper limit on the number of ids, added tokens included; at least 256 + 13.

        Raises:
          UserError: `vocab_size` does not hold the 256 bytes and the added tokens.
        """
        smallest = 256 + len(SPECIAL)
        if vocab_size < smallest:
            raise UserError(f"vocab_size: must be at least {smallest} (bytes and special tokens), got {vocab_size}")
        backend = byte_level_bpe(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_without_special(texts), trainer)
        for token in SPECIAL:  # one by one: a call adds tokens of one kind, and the order of the ids is fixed
            backend.add_tokens([AddedToken(token, special=token not in MARKUP, normalized=False)])
        return cls(backend, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})

    def save(self, folder: str | Path, template: Template = TEMPLATES["internvl2"]) -> None:
        """Writes a folder that `transformers.AutoTokenizer` reads: the tokenizer, its tokens by name, a chat template.

        Args:
          folder: created if missing; its `tokenizer*.json`, `special_tokens_map.json` and `chat_template.jinja` are
            replaced.
          template: the prompt format that `chat_template.jinja` renders.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = {
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": "<video>",
        }
        named = {key: token for key, token in named.items() if self._backend.token_to_id(token) is not None}
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
        _write_json(folder / "tokenizer_config.json", config)
        _write_json(folder / "special_tokens_map.json", {**main, **named})
        (folder / "chat_template.jinja").write_text(to_jinja(template), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: mark-up tokens are recognised, control tokens are ordinary characters."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of adjoining pieces of text, the same as of their concatenation.

        Args:
          pieces: (text, control); only in control text are control tokens recognised. Characters on both sides of a
            border may end up in one token, as they do where the reference tokenises the whole prompt.
        """
        parts: list[int | str] = []
        for text, control in pieces:
            split = self._control_pattern.split(text) if control else (text,)
            for part in split:
                token = self._control_ids.get(part) if control else None
                if token is not None:
                    parts.append(token)
                elif parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part:
                    parts.append(part)
        ids: list[int] = []
        for part in parts:
            ids += (part,) if isinstance(part, int) else self._encode_part(part)
        return ids

    def token_id(self, token: str) -> int:
        """Id of one token.

        Raises:
          UserError: the vocabulary has no such token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer has no token '{token}'")
        return found

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids. `skip_special` drops control tokens; mark-up always stays."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def image_id(self) -> int:
        """Id of `<IMG_CONTEXT>`."""
        return self.token_id(IMAGE_CONTEXT)

    def to_json(self) -> str:
        """The tokenizer as the text of `tokenizer.json`; equal tokenizers have equal texts."""
        return self._backend.to_str()

    @functools.cached_property
    def _control_ids(self) -> dict[str, int]:
        added = self._backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        # Longest first, so that a token that begins like another is not cut short. The group keeps the separators.
        tokens = sorted(self._control_ids, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, tokens)) + ")" if tokens else r"(?!)")


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


def _without_special(texts: Iterable[str]) -> Iterator[str]:
    pattern = re.compile("|".join(map(re.escape, SPECIAL)))
    for text in texts:
        yield from pattern.split(text)


def _read_config(path: Path) -> dict[str, Any]:
    """The entries of `tokenizer_config.json` that remain true of a saved copy."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    kept = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length"):
        value = config.get(key)
        kept[key] = value["content"] if isinstance(value, dict) else value
    return {key: value for key, value in kept.items() if value is not None}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
