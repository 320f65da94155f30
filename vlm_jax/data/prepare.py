"""One conversation to the arrays of one example: token ids, loss weights, patches of tiles.

Placeholders are ids from the start, never a long string of `<IMG_CONTEXT>`; loss weights come from the template's
spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.images import decode_image, image_size
from vlm_jax.data.templates import Span, Template, render
from vlm_jax.data.tiling import ClosestAspect, count_tiles, cut_tiles, patchify, share
from vlm_jax.data.tokenizer import Border, Tokenizer
from vlm_jax.errors import UserError

LossReduction = Literal["token", "sample", "square"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation, ready to be packed (t tokens, k tiles, N patches a tile, P patch side).

    Attributes:
      tokens: int32 [t].
      loss_weights: float32 [t]; weight of the prediction of `tokens[i]`, 0 where nothing is learned.
      visual: int32 [t]; index into the conversation's own k*n visual tokens, or -1 for text.
      positions: int32 [t]; rotary positions, from 0; every branch begins where what all branches share ends.
      branches: int32 [t]; number of the independent question, from 1; 0 is what all of them see.
      patches: uint8 [k, N, P*P*3].
      tile_grid: int32 [k, 2]; patches down and across.
      tile_image: int32 [k]; number of the image.
      tile_slot: int32 [k]; place in the image's grid in raster order, the thumbnail last.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray
    visual: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    patches: np.ndarray
    tile_grid: np.ndarray
    tile_image: np.ndarray
    tile_slot: np.ndarray


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns conversations into examples.

    Attributes:
      tokenizer: text to ids.
      template: the prompt format.
      layout: how images are tiled.
      patch_size: P, side of a patch in pixels; must divide the tile's side.
      tokens_per_tile: n, number of visual tokens that the connector makes of one tile.
      max_tokens: longest conversation, visual tokens included.
      loss_reduction: every supervised token of a conversation with x of them weighs 1 (`token`), 1/x (`sample`) or
        1/sqrt(x) (`square`) (`len2weight` in InternVL's `train/dataset_packed.py`).
      share_tiles: a conversation with m images allows each `max_tiles // m` tiles, at least one (InternVL's
        `multi_modal_multi_image_get_item`); otherwise each has the layout's full number.
    """

    tokenizer: Tokenizer
    template: Template
    layout: ClosestAspect
    patch_size: int
    tokens_per_tile: int
    max_tokens: int
    loss_reduction: LossReduction = "token"
    share_tiles: bool = True

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.layout.tile_size % self.patch_size:
            raise UserError(f"patch_size: {self.patch_size} does not divide the tile size {self.layout.tile_size}")

    @property
    def patches_per_tile(self) -> int:
        """N."""
        return (self.layout.tile_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Values of one patch, P*P*3."""
        return self.patch_size**2 * 3

    def __call__(self, conversation: Conversation, *, open_turn: bool = False) -> Example:
        """Prepares one conversation; with `open_turn` it ends with the open header of an answer, for generation.

        Raises:
          UserError: naming the record: an unreadable image, marks that do not match the images, a conversation longer
            than `max_tokens`.
        """
        layout = self._layout(len(conversation.images))
        # Lengths are checked before pixels are decoded.
        spans = self._spans(conversation, self._tile_counts(conversation, layout), open_turn)
        text = _tokenise(spans, self.tokenizer)
        self._check_length(conversation, len(text.ids))
        images = [decode_image(data, _image_name(conversation, i)) for i, data in enumerate(conversation.images)]
        tiles = [cut_tiles(image, layout) for image in images]
        side = layout.tile_size // self.patch_size
        counts = [len(t) for t in tiles]
        if sum(counts) * self.tokens_per_tile != np.count_nonzero(text.visual >= 0):
            raise UserError(f"record {conversation.id}: an image's header and its pixels disagree about its size")
        patches = [patchify(t, self.patch_size) for t in tiles]
        return Example(
            tokens=text.ids,
            loss_weights=_weights(text, self.loss_reduction),
            visual=text.visual,
            positions=_positions(text.branches),
            branches=text.branches,
            patches=np.concatenate(patches)
            if patches
            else np.zeros((0, self.patches_per_tile, self.patch_values), np.uint8),
            tile_grid=np.full((sum(counts), 2), side, np.int32),
            tile_image=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            tile_slot=np.concatenate([np.arange(c, dtype=np.int32) for c in counts] or [np.zeros(0, np.int32)]),
        )

    def measure(self, conversation: Conversation) -> tuple[int, int]:
        """Number of tokens (visual ones included) and tiles, from the text and the images' headers alone.

        Raises:
          UserError: as `__call__`, except for the length and for damage beyond an image's header.
        """
        counts = self._tile_counts(conversation, self._layout(len(conversation.images)))
        text = _tokenise(self._spans(conversation, counts, open_turn=False), self.tokenizer)
        return len(text.ids), sum(counts)

    def _layout(self, images: int) -> ClosestAspect:
        return share(self.layout, images) if self.share_tiles else self.layout

    def _tile_counts(self, conversation: Conversation, layout: ClosestAspect) -> list[int]:
        sizes = [image_size(data, _image_name(conversation, i)) for i, data in enumerate(conversation.images)]
        return [count_tiles(width, height, layout) for width, height in sizes]

    def _spans(self, conversation: Conversation, tiles_per_image: Sequence[int], open_turn: bool) -> list[Span]:
        try:
            return render(
                conversation.turns,
                self.template,
                tiles_per_image,
                self.tokens_per_tile,
                open_turn=open_turn,
                independent=conversation.independent,
            )
        except UserError as error:
            raise UserError(f"record {conversation.id}: {error}") from None

    def _check_length(self, conversation: Conversation, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise UserError(
                f"record {conversation.id}: prompt longer than the context: {tokens} tokens, "
                f"the limit is {self.max_tokens} (max_tokens)"
            )


class _Tokens(NamedTuple):
    """Rendered spans as tokens: ids int32 [t], supervision bool [t], visual index int32 [t], branch int32 [t]."""

    ids: np.ndarray
    supervised: np.ndarray
    visual: np.ndarray
    branches: np.ndarray


def _tokenise(spans: Sequence[Span], tokenizer: Tokenizer) -> _Tokens:
    """Ids of rendered spans, and what is known of each.

    Adjoining spans of one kind are tokenised together, so that a prompt's ids equal the reference's; the border of an
    answer is always a border of tokens, as it is in generation.
    """
    ids: list[int] = []
    supervised: list[bool] = []
    visual: list[int] = []
    branches: list[int] = []
    pieces: list[tuple[str, bool]] = []
    seen = 0
    before = shared = Border.START
    for number, span in enumerate(spans):
        if number and span.branch != spans[number - 1].branch:
            if not spans[number - 1].branch:
                shared = before
            before = shared  # every branch goes on where what all of them see ends
        if span.image is not None:
            ids += [tokenizer.image_id] * span.placeholders
            supervised += [False] * span.placeholders
            visual += range(seen, seen + span.placeholders)
            branches += [span.branch] * span.placeholders
            seen += span.placeholders
            continue
        pieces.append((span.text, span.control))
        following = spans[number + 1] if number + 1 < len(spans) else None
        if following is None or following.image is not None or _kind(following) != _kind(span):
            new, before = tokenizer.encode_behind(before, pieces)
            ids += new
            supervised += [span.supervised] * len(new)
            visual += [-1] * len(new)
            branches += [span.branch] * len(new)
            pieces = []
    return _Tokens(
        np.array(ids, np.int32), np.array(supervised, bool), np.array(visual, np.int32), np.array(branches, np.int32)
    )


def _kind(span: Span) -> tuple[bool, int]:
    return span.supervised, span.branch


def _weights(text: _Tokens, reduction: LossReduction) -> np.ndarray:
    """A branch weighs what it would as a conversation of its own."""
    counts = np.maximum(np.bincount(text.branches, text.supervised), 1)
    weight = {"token": counts**0.0, "sample": 1.0 / counts, "square": counts**-0.5}[reduction]
    return np.where(text.supervised, weight[text.branches], 0.0).astype(np.float32)


def _positions(branches: np.ndarray) -> np.ndarray:
    order = np.arange(len(branches), dtype=np.int32)
    if not len(branches) or not branches.any():
        return order
    shared = np.count_nonzero(branches == 0)  # they stand first
    starts = np.maximum.accumulate(np.where(np.diff(branches, prepend=0) > 0, order, 0))
    return np.where(branches > 0, order - starts + shared, order).astype(np.int32)


def _image_name(conversation: Conversation, number: int) -> str:
    return f"record {conversation.id}, image {number}"
