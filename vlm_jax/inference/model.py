"""`load` and `Model`: a trained model as an object that answers questions about images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vlm_jax.batch import TEXT, Batch, BatchShape, empty_batch
from vlm_jax.convert.folders import select_parts
from vlm_jax.convert.lazy import LazyArray
from vlm_jax.convert.workdirs import open_model
from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.images import decode_image, to_rgb
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.data.plan.packing import pack_row
from vlm_jax.data.prepare import Example
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.inference.generate import GREEDY, Sampling, bucket, generate
from vlm_jax.models.layers import Compute
from vlm_jax.models.vlm import VLM
from vlm_jax.system import System

Picture = str | Path | bytes | Image.Image
"""An image file's path, its bytes, or a Pillow image."""

_WINDOW = 8
"""Batches of questions that `Model.answer` prepares, and sorts by length, at a time."""


def load(folder: str | Path, compute: Compute | None = None) -> Model:
    """Loads a model from a training workdir or from a model folder in any layout; it finds out which.

    Of a workdir the newest checkpoint is taken, or `export/` when there is none.

    Args:
      folder: where the model lies.
      compute: how to calculate; by default float32 on CPU and bfloat16 on accelerators.

    Raises:
      UserError: the folder does not exist, holds no model, or holds one that does not fit its config.
    """
    params, system, tokenizer = open_model(folder)
    return Model(system, params, tokenizer, compute)


class Model:
    """A model that is ready to use.

    Attributes:
      system: what it is.
      params: nested dict of its parameters on the device.
      tokenizer: text to ids and back.
      compute: how it calculates.
    """

    def __init__(
        self, system: System, params: Mapping[str, Any], tokenizer: Tokenizer, compute: Compute | None = None
    ) -> None:
        """Takes the model's parts from `params` and holds them in the dtype of the computation.

        Raises:
          UserError: the parameters or the tokenizer do not fit the system.
        """
        rows = system.model.decoder.vocab_size
        if tokenizer.vocab_size > rows:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the decoder's embedding only {rows} rows")
        self.system, self.tokenizer = system, tokenizer
        self.compute = compute or Compute(dtype="float32" if jax.default_backend() == "cpu" else "bfloat16")
        parts = select_parts(params, system.model, "model")
        self.params = jax.tree.map(partial(_hold, self.compute.dtype), parts)
        self._network = VLM(system.model, self.compute)
        self._stop_id = tokenizer.stop_id(system.chat_template)

    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        max_tiles: int | None = None,
        top_p: float = 1.0,
    ) -> str:
        """Answers one prompt.

        Args:
          prompt: the user's words. `<image>` marks say where the images stand; without marks they come first.
          images: what the marks stand for, in order.
          max_new_tokens: the answer is cut off after so many.
          temperature: 0 always takes the most likely token; higher is more varied.
          seed: equal seeds give equal answers.
          max_tiles: most tiles that an image is cut into; the system's own number when None.
          top_p: with a temperature, draw from the most likely tokens that together have this probability.

        Raises:
          UserError: an unreadable image, marks that do not match the images, or a prompt longer than the context.
        """
        turns = (Turn("user", self.with_marks(prompt, len(images))),)
        return self.reply(turns, images, max_new_tokens, Sampling(temperature, top_p, seed), max_tiles)

    def with_marks(self, prompt: str, images: int) -> str:
        """See `with_marks`."""
        return with_marks(prompt, images, self.system.chat_template.numbered)

    def reply(
        self,
        turns: Sequence[Turn],
        images: Sequence[Picture],
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        max_tiles: int | None = None,
    ) -> str:
        """Answers the last turn of a conversation (see `generate`)."""
        conversation = Conversation(tuple(turns), tuple(map(read_picture, images)), id="prompt")
        example = self._prepare(conversation, max_tiles)
        return self._continue([example], max_new_tokens, sampling)[0]

    def answer(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = 32,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answers many conversations that end with the user's turn, greedily and in batches.

        Questions of similar length share a batch, so that little of it is padding; the answers come in the order of
        the questions.

        Args:
          conversations: the questions.
          max_new_tokens: an answer is cut off after so many.
          batch_size: questions that are answered at a time.
          progress: called with the number of questions answered since its last call.

        Raises:
          UserError: as `generate`, naming the conversation by its id.
        """
        answers: list[str] = []
        for window in _chunks(conversations, batch_size * _WINDOW):
            examples = [self._prepare(conversation) for conversation in window]
            order = sorted(range(len(window)), key=lambda i: (len(examples[i].patches), len(examples[i].tokens)))
            said: dict[int, str] = {}
            for chosen in _chunks(order, batch_size):
                replies = self._continue([examples[i] for i in chosen], max_new_tokens, GREEDY)
                said.update(zip(chosen, replies, strict=True))
                if progress is not None:
                    progress(len(chosen))
            answers += [said[i] for i in range(len(window))]
        return answers

    def batch(
        self,
        conversations: Sequence[Conversation | str],
        images: Sequence[Sequence[Picture]] | None = None,
        max_tiles: int | None = None,
    ) -> Batch:
        """Conversations as a batch, one a row, padded on the right to the longest.

        Args:
          conversations: a string is one question of the user's. Where the user has the last word the row ends with the
            open header of the answer.
          images: the images of each conversation; its own when None.
          max_tiles: as in `generate`.

        Raises:
          UserError: as `generate`.
        """
        if images is not None and len(images) != len(conversations):
            raise UserError(f"images for {len(images)} conversations, but there are {len(conversations)}")
        full = []
        for number, item in enumerate(conversations):
            own = None if images is None else tuple(map(read_picture, images[number]))
            if isinstance(item, str):
                item = Conversation((Turn("user", self.with_marks(item, len(own or ()))),), own or (), id=str(number))
            elif own is not None:
                item = dataclasses.replace(item, images=own)
            full.append(item)
        examples = [self._prepare(conversation, max_tiles) for conversation in full]
        rows, tokens = len(examples), max(len(e.tokens) for e in examples)
        return self._pad(examples, rows, tokens, max(len(e.patches) for e in examples))

    def logits(self, batch: Batch | np.ndarray, tiles: np.ndarray | None = None) -> jax.Array:
        """Logits float32 [B, T, V]: all positions at once, for checking rather than speed.

        Args:
          batch: a `Batch`, or int32 [B, T] token ids without padding.
          tiles: with token ids only: uint8 [B, K, height, width, 3], K whole tiles a row, whose visual tokens take the
            places of the row's placeholders (`Template.image_context`) in order.

        Raises:
          UserError: the places and the tiles do not match, or images of this system are not cut into tiles.
        """
        if not isinstance(batch, Batch):
            batch = self._whole_rows(np.asarray(batch, np.int32), tiles)
        return _logits(self._network, self.params, batch._replace(extras={}))

    def _whole_rows(self, tokens: np.ndarray, tiles: np.ndarray | None) -> Batch:
        vision, per_tile = self.system.model.vision, self.system.model.tokens_per_tile
        rows, length = tokens.shape
        placeholders = tokens == self.tokenizer.token_id(self.system.chat_template.image_context)
        side = vision.image_size
        if side is None:  # patches of no tile
            if tiles is not None or placeholders.any():
                raise UserError("images of this system have sizes of their own: use model.batch, not ids and tiles")
            side = vision.patch_size
        if tiles is None:
            tiles = np.zeros((rows, 0, side, side, 3), np.uint8)
        count = tiles.shape[1]
        if tiles.shape != (rows, count, side, side, 3):
            raise UserError(f"tiles have shape {tiles.shape}, not ({rows}, K, {side}, {side}, 3)")
        batch = self._pad([], rows, length, count)
        wrong = np.flatnonzero(placeholders.sum(axis=1) != count * per_tile)
        if len(wrong):
            found = placeholders[wrong[0]].sum()
            raise UserError(f"row {wrong[0]} has {found} image tokens for {count} tiles of {per_tile} tokens each")
        if count:
            batch.patches[:, :count] = [patchify(row, vision.patch_size) for row in tiles]
            batch.tile_grid[:, :count] = vision.grid
        batch.tile_segment[:, :count] = 1
        batch.tile_slot[:, :count] = np.arange(count)
        batch.segments[:] = 1
        batch.tokens[:] = tokens
        batch.positions[:] = np.arange(length)
        batch.splice[:] = np.where(placeholders, np.cumsum(placeholders, axis=1) - 1, TEXT)
        return batch

    def _prepare(self, conversation: Conversation, max_tiles: int | None = None) -> Example:
        if max_tiles is not None and max_tiles < 1:
            raise UserError(f"max_tiles: must be at least 1, got {max_tiles}")
        for turn in conversation.turns:
            _check_text(turn.text)
        preparer = self.system.preparer(self.tokenizer, self.system.model.decoder.context, max_tiles)
        return preparer(conversation, open_turn=conversation.turns[-1].role == "user")

    def _pad(self, examples: Sequence[Example], rows: int, tokens: int, tiles: int) -> Batch:
        """One example a row; there is always a tile slot, because the network's shapes want one."""
        model = self.system.model
        batch = empty_batch(BatchShape(rows, tokens, max(tiles, 1), model.vision.patches, model.patch_values))
        for row, example in enumerate(examples):
            pack_row([example], batch, row, model.tokens_per_tile)
        return batch

    def _continue(self, examples: Sequence[Example], max_new_tokens: int, sampling: Sampling) -> list[str]:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
        room = self.system.model.decoder.context
        lengths = [len(example.tokens) for example in examples]
        if max(lengths) >= room:
            raise UserError(f"the prompt is longer than the context: {max(lengths)} tokens leave no room in {room}")
        rows = bucket(len(examples), 1)
        tiles = bucket(max(len(example.patches) for example in examples), 1)
        batch = self._pad(examples, rows, bucket(max(lengths), 32), tiles)
        limits = np.ones(rows, np.int32)
        limits[: len(examples)] = [min(max_new_tokens, room - length) for length in lengths]
        new = generate(self._network, self.params, batch, limits, self._stop_id, sampling)
        return [self.tokenizer.decode(ids).strip() for ids in new[: len(examples)]]


def with_marks(prompt: str, images: int, numbered: bool = True) -> str:
    r"""Puts a mark for every image before a prompt that has none.

    `<image>\n` each; several that are `numbered` (`Template.numbered`): `Image-1: <image>\nImage-2: <image>\n`.
    """
    if not images or IMAGE in prompt:
        return prompt
    labels = [f"Image-{number}: " for number in range(1, images + 1)] if numbered and images > 1 else [""] * images
    return "".join(f"{label}{IMAGE}\n" for label in labels) + prompt


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line or a file that are no UTF-8, or half of a character
        raise UserError(f"the prompt is not valid Unicode text: {text!a}") from None


def read_picture(picture: Picture) -> bytes:
    """An image as the bytes of an image file.

    Raises:
      UserError: naming the file that does not exist or cannot be read as an image.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        to_rgb(picture, "the image given").save(stream, "PNG")
        return stream.getvalue()
    try:
        data = Path(picture).read_bytes()
    except (OSError, ValueError) as error:  # a name with a null byte is a wrong value
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"{picture}: cannot read this image: {problem}") from None
    decode_image(data, str(picture))  # an error from here names the file
    return data


@partial(jax.jit, static_argnums=0)
def _logits(network: VLM, params: Any, batch: Batch) -> jax.Array:
    return network.apply({"params": params}, batch)


def _hold(dtype: str, leaf: Any) -> jax.Array:
    """Matrices in the compute dtype, so that no step casts them again; vectors (norms, scales) in float32."""
    array = np.asarray(leaf) if isinstance(leaf, LazyArray) else leaf  # read one at a time
    return jnp.asarray(array, dtype if array.ndim > 1 else jnp.float32)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
