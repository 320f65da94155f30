"""SentencePiece's `tokenizer.model` as a tokenizer of `tokenizers`: the same ids for every text, without its library.

The file is a protocol buffer with the pieces, their scores and what is done to a text first; nothing of it is assumed.
How the pieces are applied: `src/normalizer.cc` and `src/bpe_model.cc` of google/sentencepiece. Where a stretch of text
gets its leading "▁": the slow tokenizers of `transformers` 4.37, with which the released models were trained.
"""

from __future__ import annotations

import collections
import graphlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from vlm_jax.errors import UserError

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

Prefix = Literal["never", "first", "always"]
"""Where "▁" is put before a stretch of text: nowhere, at the start of the prompt, or behind every added token too."""

_SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type of the format
_BPE = 2  # TrainerSpec.ModelType

Merge = tuple[str, str]


def read_sentencepiece(
    path: Path, added: Mapping[int, AddedToken], config: Mapping[str, Any], source: str
) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.model`, with `added` at exactly the ids given.

    Args:
      path: the model; byte-pair encoding without rules of normalisation.
      added: added tokens by id. One with the id of a piece takes that piece's place; the others follow the pieces.
      config: `tokenizer_config.json`, which says whether a Llama tokenizer is of the older kind.
      source: the file that names the added tokens, for messages.

    Raises:
      UserError: naming the file that is damaged, of another kind, or gives an id that cannot be.
    """
    model = _parse(path)
    _check(model, path)
    names = [piece.piece for piece in model.pieces]
    placed = dict(added)
    for number, piece in enumerate(model.pieces):
        if piece.type in (_UNKNOWN, _CONTROL):
            # Never a part of what people write, whatever the folder says (Phi-3's of </s>).
            token = placed.setdefault(number, AddedToken(piece.piece, normalized=False))
            token.special = True
    _place(names, placed, model, source)
    # Written out by the user of SentencePiece, they are cut out of a text before anything is merged. One that an added
    # token has replaced no longer stands for its old name.
    symbols = [
        piece.piece
        for number, piece in enumerate(model.pieces)
        if piece.type == _USER_DEFINED and number not in placed and len(piece.piece) > 1
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {name: number for number, name in enumerate(names)},
            list(_merges(model)),
            unk_token=names[next(i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)],
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    _frame(backend, model, _prefix(model, config), symbols)
    for number in sorted(placed):  # one by one: a call adds tokens of one kind, and the order of the ids is fixed
        backend.add_tokens([placed[number]])
        if backend.token_to_id(placed[number].content) != number:
            raise UserError(
                f"{source}: token '{placed[number].content}' should have id {number}, which does not follow the "
                f"{len(names)} pieces of {path.name} without a gap"
            )
    # They are looked for in the normalised text, as SentencePiece does, which has "▁" for a space.
    backend.add_tokens([AddedToken(symbol, special=False, normalized=True) for symbol in symbols])
    return backend


def _parse(path: Path) -> ModelProto:
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    except DecodeError:
        raise UserError(f"{path}: not a SentencePiece model, or a damaged one") from None
    if not model.pieces:
        raise UserError(f"{path}: not a SentencePiece model: it has no pieces")
    return model


def _check(model: ModelProto, path: Path) -> None:
    """Refuses what cannot be said exactly in the form of `tokenizers`."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = collections.Counter(piece.type for piece in model.pieces)
    names = {piece.piece for piece in model.pieces}
    kind = type(trainer).ModelType.Name(trainer.model_type)
    problems = {
        f"it is a {kind} model, only BPE is read": trainer.model_type != _BPE,
        f"it normalises text by rules ({normalizer.name or 'of its own'})": bool(normalizer.precompiled_charsmap),
        "it normalises decoded text by rules": bool(model.denormalizer_spec.precompiled_charsmap),
        "it writes spaces behind words (treat_whitespace_as_suffix)": trainer.treat_whitespace_as_suffix,
        "it does not escape spaces (escape_whitespaces)": not normalizer.escape_whitespaces,
        f"it has {types[_UNUSED]} pieces of type UNUSED": types[_UNUSED] > 0,
    }
    for problem, there in problems.items():
        if there:
            raise UserError(
                f"{path}: {problem}; add a tokenizer.json "
                "(`AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one)"
            )
    damage = {
        f"{len(model.pieces) - len(names)} pieces are there twice": len(names) < len(model.pieces),
        "a piece is empty": "" in names,
        f"it has {types[_UNKNOWN]} unknown pieces, not one": types[_UNKNOWN] != 1,
        f"it falls back to bytes, but {types[_BYTE]} of 256 are there": trainer.byte_fallback and types[_BYTE] != 256,
    }
    for problem, there in damage.items():
        if there:
            raise UserError(f"{path}: a damaged SentencePiece model: {problem}")


def _place(names: list[str], added: Mapping[int, AddedToken], model: ModelProto, source: str) -> None:
    """Writes the added tokens' names over the pieces whose ids they have."""
    pieces = {name: number for number, name in enumerate(names)}
    for number, token in sorted(added.items()):
        held = pieces.get(token.content, number)
        if held != number:
            raise UserError(f"{source}: token '{token.content}' has id {number}, but piece {held} has that name")
        if number < len(names) and names[number] != token.content:
            if model.pieces[number].type in (_NORMAL, _BYTE):
                raise UserError(
                    f"{source}: token '{token.content}' has id {number}, where the piece '{names[number]}' is"
                )
            names[number] = token.content


def _prefix(model: ModelProto, config: Mapping[str, Any]) -> Prefix:
    """Llama's tokenizers that are not "legacy" turn SentencePiece's own prefix off and put one before the prompt."""
    if config.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast") and config.get("legacy") is False:
        return "never" if config.get("add_prefix_space") is False else "first"
    return "always" if model.normalizer_spec.add_dummy_prefix else "never"


def _frame(backend: tokenizers.Tokenizer, model: ModelProto, prefix: Prefix, symbols: list[str]) -> None:
    """What is done to a text before it is cut into pieces, and to pieces when they become a text again.

    With `first`, a prompt that begins with a space gets no "▁" beside it, which the slow tokenizer would put there.
    """
    remove = model.normalizer_spec.remove_extra_whitespaces
    steps: list[normalizers.Normalizer] = []
    if remove:
        steps.append(normalizers.Replace(Regex(r"\A +"), ""))
    if prefix == "always":
        steps.append(_prepend(symbols))
    if remove:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    steps.append(normalizers.Replace(" ", _SPACE))
    if remove:
        steps.append(normalizers.Replace(Regex(_SPACE + r"+\z"), ""))
    backend.normalizer = normalizers.Sequence(steps)
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix != "never" or remove else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _prepend(symbols: list[str]) -> normalizers.Normalizer:
    """Puts "▁" before a text. `tokenizers` normalises the symbols that it looks for too, and those must stay whole.

    So a text that is one symbol and nothing else goes without "▁", which SentencePiece would put there.
    """
    if not symbols:
        return normalizers.Prepend(_SPACE)
    return normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(map(re.escape, symbols))})?\z)"), _SPACE)


def _merges(model: ModelProto) -> Iterator[Merge]:
    """Every way to put a piece together from two others, in the order in which they are tried.

    SentencePiece merges the pair that makes the piece of the best score, and of equals the leftmost. Symbols that the
    user gave it never take part.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    by_score = collections.defaultdict(list)
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                by_score[score].append((piece[:cut], piece[cut:]))
    for score in sorted(by_score, reverse=True):
        yield from _leftmost_first(by_score[score])


def _leftmost_first(merges: list[Merge]) -> list[Merge]:
    """Orders merges of equal score so that of two which overlap in a text the left one is done.

    (x, y) and (y, z) overlap in "xyz", where (x, y) is the left one. Runs of one unit, in which any two merges overlap
    both ways round, have no such order.
    """
    merges = sorted(merges, key=lambda merge: -len(merge[0]))  # runs of one character grow from the left
    if len({left + right for left, right in merges}) == 1:
        return merges
    ending = collections.defaultdict(list)
    for merge in merges:
        ending[merge[1]].append(merge)
    order: graphlib.TopologicalSorter[Merge] = graphlib.TopologicalSorter()
    for merge in merges:
        runs = _is_run(merge)
        order.add(merge, *(before for before in ending[merge[0]] if not (runs and _is_run(before))))
    try:
        return list(order.static_order())
    except graphlib.CycleError:  # no order does it; this one is what converters commonly use
        return merges


def _is_run(merge: Merge) -> bool:
    left, right = merge
    return left + right == right + left
