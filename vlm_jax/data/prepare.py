"""One conversation to the arrays of one example: token ids, loss weights, patches of tiles.

Placeholders are ids from the start, never a long string of them; loss weights come from the template's
spans.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from vlm_jax.batch import TEXT
from vlm_jax.data.conversation import Conversation, Reason, RecordError
from vlm_jax.data.images import MAX_MEGAPIXELS, ImageError, image_size
from vlm_jax.data.layouts.layout import ROW_TOKEN, Layout
from vlm_jax.data.pixels import image_patches
from vlm_jax.data.text.render import Span, render
from vlm_jax.data.text.templates import Template
from vlm_jax.data.text.tokenizer import Border, Tokenizer
from vlm_jax.errors import UserError

LossReduction = Literal["token", "sample", "square"]
TooLong = Literal["error", "truncate"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation, ready to be packed (t tokens, k tiles, N patches a tile, P patch side).

    Attributes:
      tokens: int32 [t].
      loss_weights: float32 [t]; weight of the prediction of `tokens[i]`, 0 where nothing is learned.
      visual: int32 [t]; index into the conversation's own k*n visual tokens, -1 for text, or -2 - v where the model's
        learned vector number v stands.
      positions: int32 [t]; rotary positions, from 0; every branch begins where what all branches share ends.
      branches: int32 [t]; number of the independent question, from 1; 0 is what all of them see.
      patches: uint8 [k, N, P*P*3].
      tile_grid: int32 [k, 2]; patches down and across.
      tile_image: int32 [k]; number of the image.
      tile_slot: int32 [k]; place among the image's tiles, in the order of its layout.
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


class Size(NamedTuple):
    """How large a conversation is.

    Attributes:
      tokens: of the whole conversation, visual ones included.
      tiles: of all its images, thumbnails included.
      least: tokens that must stay when it is cut at the end: up to the last image's end, and to the first token of an
        answer (one more than `tokens`, if nothing is supervised).
    """

    tokens: int
    tiles: int
    least: int


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns conversations into examples.

    Attributes:
      tokenizer: text to ids.
      template: the prompt format.
      layout: how images are tiled; where it draws something, the conversation's id decides (`Layout.drawn`).
      patch_size: P, side of a patch in pixels.
      tokens_per_tile: n, number of visual tokens that the connector makes of one tile.
      max_tokens: longest conversation, visual tokens included.
      loss_reduction: every supervised token of a conversation with x of them weighs 1 (`token`), 1/x (`sample`) or
        1/sqrt(x) (`square`) (`len2weight` in InternVL's `train/dataset_packed.py`).
      share_tiles: a conversation with m images allows each `max_tiles // m` tiles, at least one (InternVL's
        `multi_modal_multi_image_get_item`); otherwise each has the layout's full number.
      too_long: what becomes of a conversation of more than `max_tokens`: an error, or it is cut at the end, which is
        an error too where that would cut an image or leave nothing of an answer (`tokenizer.model_max_length` and the
        assertion after it in InternVL's `train/internvl_chat_finetune.py`).
      max_megapixels: images with more pixels are refused before they are decoded.
    """

    tokenizer: Tokenizer
    template: Template
    layout: Layout
    patch_size: int
    tokens_per_tile: int
    max_tokens: int
    loss_reduction: LossReduction = "token"
    share_tiles: bool = True
    too_long: TooLong = "error"
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.patches_per_tile < 1:
            raise UserError(f"patch_size: must lie between 1 and the side of a tile, got {self.patch_size}")

    @property
    def patches_per_tile(self) -> int:
        """N."""
        return self.layout.patches(self.patch_size)

    @property
    def patch_values(self) -> int:
        """Values of one patch, P*P*3."""
        return self.patch_size**2 * 3

    def __call__(
        self, conversation: Conversation, *, open_turn: bool = False, draw: Sequence[int] | None = None
    ) -> Example:
        """Prepares one conversation.

        Args:
          conversation: the record.
          open_turn: end with the open header of an answer, for generation.
          draw: seed of what is drawn at random in training; None draws nothing.

        Raises:
          RecordError: an unreadable image, marks that do not match the images, a conversation longer than `max_tokens`.
        """
        layout = self.tiling(conversation)
        # Lengths are checked before pixels are decoded.
        sizes = self._sizes(conversation)
        counts = [layout.tiles(*size) for size in sizes]
        text = self._cut(conversation, self._text(conversation, layout, sizes, open_turn), open_turn)
        grids = [layout.patch_grids(*size, self.patch_size) for size in sizes]
        return Example(
            tokens=text.ids,
            loss_weights=_weights(text, self.loss_reduction),
            visual=text.visual,
            positions=_positions(text.branches),
            branches=text.branches,
            patches=self._patches(conversation, layout, counts, draw),
            tile_grid=np.concatenate([np.zeros((0, 2), np.int32), *grids]),
            tile_image=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            tile_slot=np.concatenate([np.arange(c, dtype=np.int32) for c in counts] or [np.zeros(0, np.int32)]),
        )

    def measure(self, conversation: Conversation) -> Size:
        """Size of a conversation however long it is, from the text and the images' headers alone.

        Raises:
          RecordError: as `__call__`, except for the length and for damage beyond an image's header.
        """
        layout, sizes = self.tiling(conversation), self._sizes(conversation)
        text = self._text(conversation, layout, sizes, open_turn=False)
        return Size(len(text.ids), sum(layout.tiles(*size) for size in sizes), _least(text, self.template))

    def tiling(self, conversation: Conversation) -> Layout:
        """How the images of a conversation become tiles."""
        layout, most = self.layout, conversation.max_tiles
        if most is not None:
            layout = layout.at_most(most)
        layout = layout.drawn(conversation.id)
        return layout.among(len(conversation.images)) if self.share_tiles else layout

    def _sizes(self, conversation: Conversation) -> list[tuple[int, int]]:
        """Width and height of every image in pixels."""
        sizes = []
        for number, data in enumerate(conversation.images):
            with _told(conversation, "image"):
                sizes.append(image_size(data, f"image {number}", self.max_megapixels))
        return sizes

    def _patches(
        self, conversation: Conversation, layout: Layout, counts: Sequence[int], draw: Sequence[int] | None
    ) -> np.ndarray:
        """Patches of all images' tiles, uint8 [k, N, P*P*3]."""
        rng = None if draw is None or not conversation.augment else np.random.default_rng(draw)
        patches = np.empty((sum(counts), self.patches_per_tile, self.patch_values), np.uint8)
        ends = np.cumsum(counts).tolist()
        for number, (data, count, end) in enumerate(zip(conversation.images, counts, ends, strict=True)):
            with _told(conversation, "image"):
                image_patches(
                    data,
                    f"image {number}",
                    layout,
                    self.patch_size,
                    out=patches[end - count : end],
                    rng=rng,
                    max_megapixels=self.max_megapixels,
                )
        return patches

    def _text(
        self, conversation: Conversation, layout: Layout, sizes: Sequence[tuple[int, int]], open_turn: bool
    ) -> _Tokens:
        """The whole prompt as tokens."""
        images = [layout.place(*size, self.tokens_per_tile) for size in sizes]
        if self.template.row_token is None and any((tokens == ROW_TOKEN).any() for tokens in images):
            raise UserError(
                f"the image layout ends rows of patches with a token, and the prompt format '{self.template.name}' "
                "has none for it (row_token)"
            )
        with _told(conversation, "turns"):
            spans = render(
                conversation.turns,
                self.template,
                [len(tokens) for tokens in images],
                open_turn=open_turn,
                independent=conversation.independent,
            )
        # An image's visual tokens are counted from the first of the conversation's.
        starts = np.cumsum([0] + [layout.tiles(*size) * self.tokens_per_tile for size in sizes])
        shifted = [np.where(tokens < 0, tokens, tokens + start) for tokens, start in zip(images, starts, strict=False)]
        return _tokenise(spans, self.tokenizer, shifted, self.template.row_token)

    def _cut(self, conversation: Conversation, text: _Tokens, open_turn: bool) -> _Tokens:
        tokens, limit = len(text.ids), self.max_tokens
        if tokens <= limit:
            return text
        problem = f"the limit is {limit} (max_tokens)"
        if self.too_long == "error" or open_turn:
            raise RecordError(
                conversation.name, "too long", f"prompt longer than the context: {tokens} tokens, {problem}"
            )
        least = _least(text, self.template)
        if least > limit:
            raise RecordError(
                conversation.name,
                "too long",
                f"cannot be cut: the first {min(least, tokens)} of its {tokens} tokens hold its images and the "
                f"beginning of an answer, {problem}",
            )
        return _Tokens(*(values[:limit] for values in text))


@contextlib.contextmanager
def _told(conversation: Conversation, reason: Reason) -> Iterator[None]:
    """Says of which record an error is."""
    try:
        yield
    except UserError as error:
        exact = error.reason if isinstance(error, ImageError) else reason
        raise RecordError(conversation.name, exact, str(error)) from None


class _Tokens(NamedTuple):
    """Rendered spans as tokens: ids int32 [t], supervision bool [t], visual index int32 [t], branch int32 [t]."""

    ids: np.ndarray
    supervised: np.ndarray
    visual: np.ndarray
    branches: np.ndarray


def _tokenise(
    spans: Sequence[Span],
    tokenizer: Tokenizer,
    images: Sequence[np.ndarray] | None = None,
    row_token: str | None = None,
) -> _Tokens:
    """Ids of rendered spans, and what is known of each.

    Adjoining spans of one kind are tokenised together, so that a prompt's ids equal the reference's; the border of an
    answer is always a border of tokens, as it is in generation.

    Args:
      spans: of a conversation.
      tokenizer: text to ids.
      images: what stands for each image (see `Layout.place`), visual tokens counted over the whole conversation; these
        in their order, and nothing else, when None.
      row_token: what ends a row of patches, where a placement has such.

    Raises:
      UserError: the tokenizer lacks a token of the prompt format.
    """
    ids: list[Sequence[int] | np.ndarray] = []
    visual: list[np.ndarray] = []
    kinds: list[tuple[bool, int]] = []
    pieces: list[tuple[str, bool]] = []
    row = None if row_token is None else tokenizer.token_id(row_token)
    if images is None:
        lengths = [span.placeholders for span in spans if span.image is not None]
        images = np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1])
    before = shared = Border.START
    for number, span in enumerate(spans):
        if number and span.branch != spans[number - 1].branch:
            if not spans[number - 1].branch:
                shared = before
            before = shared  # every branch goes on where what all of them see ends
        if span.image is not None:
            visual.append(images[span.image])
            context = tokenizer.token_id(span.text)
            ids.append(np.where(visual[-1] == ROW_TOKEN, context if row is None else row, context))
            kinds.append(_kind(span))
            before = Border.START  # the references tokenise what follows by itself
            continue
        if span.outside:
            ids.append([tokenizer.token_id(span.text)])
            visual.append(np.full(1, TEXT, np.int32))
            kinds.append(_kind(span))
            before = Border.START
            continue
        pieces.append((span.text, span.control))
        following = spans[number + 1] if number + 1 < len(spans) else None
        if following is None or _alone(following) or _kind(following) != _kind(span):
            new, before = tokenizer.encode_behind(before, pieces)
            ids.append(new)
            visual.append(np.full(len(new), TEXT, np.int32))
            kinds.append(_kind(span))
            pieces = []
    lengths = [len(part) for part in ids]
    supervised, branches = zip(*kinds, strict=True)
    return _Tokens(
        np.concatenate([np.asarray(part, np.int32) for part in ids]),
        np.repeat(np.array(supervised, bool), lengths),
        np.concatenate(visual).astype(np.int32),
        np.repeat(np.array(branches, np.int32), lengths),
    )


def _least(text: _Tokens, template: Template) -> int:
    """See `Size.least`."""
    places = np.flatnonzero(text.visual != TEXT)
    # With its </img>, or the token that ends its last row.
    image_end = int(places[-1]) + 1 + bool(template.image_end or template.row_token) if len(places) else 0
    answer = int(text.supervised.argmax()) + 1 if text.supervised.any() else len(text.ids) + 1
    return max(image_end, answer)


def _alone(span: Span) -> bool:
    """Whether it is tokens already, no text."""
    return span.image is not None or span.outside


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
