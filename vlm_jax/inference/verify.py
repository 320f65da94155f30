"""Compares a model with the reference: the same weights in `transformers`, run by PyTorch on the CPU in float32.

This is the one place that imports PyTorch, and only when it is asked to.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import log_softmax

from vlm_jax.batch import Batch
from vlm_jax.convert.folders import Opened, open_folder
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.data.layouts.patches import unpatchify
from vlm_jax.errors import UserError
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model
from vlm_jax.models.layers import Compute
from vlm_jax.models.vlm import VLM, AnyVisionConfig
from vlm_jax.system import System

TOLERANCE = 1e-3
"""Largest difference of two logits that float32 arithmetic in another order explains at full size. Where the two best
logits are nearer to each other than this, either token counts as right."""


class Agreement(NamedTuple):
    """How far two models agree over some prompts.

    Attributes:
      difference: largest |difference| of two logits.
      divergence: Kullback-Leibler divergence of our next-token distribution from the reference's, in nats; the mean
        over all positions.
      tokens, equal: how many tokens the reference wrote greedily, and how many of them we did too before the first
        that differs.
      gap: by how much the reference preferred its first token that we did not write; None where all are equal.
    """

    difference: float
    divergence: float
    tokens: int
    equal: int
    gap: float | None

    @property
    def holds(self) -> bool:
        """Whether what differs is rounding."""
        return self.difference <= TOLERANCE and (self.gap is None or self.gap <= TOLERANCE)

    def __str__(self) -> str:
        gap = "" if self.gap is None else f" (the reference preferred the next one by {self.gap:.1e})"
        return (
            f"max |difference| of logits {self.difference:.1e}, KL {self.divergence:.1e} nats, "
            f"greedy tokens equal {self.equal} of {self.tokens}{gap}"
        )


def verify(folder: Path, max_new_tokens: int = 64, prompts: Sequence[Conversation] | None = None) -> Agreement:
    """Runs a folder in layout `hf` through vlm_jax and, when that is out of memory again, through `transformers`.

    Args:
      folder: what both read.
      max_new_tokens: length of the greedy answers.
      prompts: what to ask; by default a question about a drawn picture in two tiles and a thumbnail, and one without a
        picture.

    Raises:
      UserError: PyTorch or `transformers` is not installed.
    """
    _torch()
    opened = open_folder(folder)
    prompts = prompts or default_prompts()
    batch, logits, answers = _ours(opened, max_new_tokens, prompts)
    reference = _Reference(folder)
    results = [
        _compare(logits[row, : len(inputs["input_ids"][0])], answers[row], *reference(inputs, max_new_tokens))
        for row, inputs in enumerate(torch_rows(batch, opened.system, prompts))
    ]
    gaps = [result.gap for result in results if result.gap is not None]
    return Agreement(
        difference=max(result.difference for result in results),
        divergence=float(np.mean([result.divergence for result in results])),
        tokens=sum(result.tokens for result in results),
        equal=sum(result.equal for result in results),
        gap=max(gaps, default=None),
    )


def default_prompts() -> list[Conversation]:
    """One question about a picture that is drawn here, one without a picture."""
    down, across = np.mgrid[0:200, 0:400]
    picture = np.stack([across * 255 // 400, down * 255 // 200, (across * down) % 256], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return [
        Conversation((Turn("user", "<image>\nDescribe the picture in detail."),), (stream.getvalue(),), "picture"),
        Conversation((Turn("user", "Name the planets of the solar system."),), (), "text"),
    ]


def torch_rows(batch: Batch, system: System, prompts: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """Row by row what `transformers` wants in place of a `Batch`.

    It scales rotary frequencies by the longest row of a batch, so that only rows on their own are exact.

    Args:
      batch: one conversation a row.
      system: what the batch was made for.
      prompts: what it was made of; where tokens are left out by the size of an image, `transformers` asks for that.
    """
    torch, vision = _torch(), system.model.vision
    used = np.asarray(batch.tile_segment) > 0
    for row in range(len(batch.tokens)):
        length = int((np.asarray(batch.segments[row]) > 0).sum())
        inputs = {
            "input_ids": torch.tensor(np.asarray(batch.tokens[row : row + 1, :length]), dtype=torch.long),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        if used[row].any():
            pixels = _pixels(
                np.asarray(batch.patches[row])[used[row]], np.asarray(batch.tile_grid[row])[used[row]], vision
            )
            inputs["pixel_values"] = torch.tensor(pixels, dtype=torch.float32)
            if isinstance(system.layout, AnyRes):
                sizes = [decode_image(data, "the image").size for data in prompts[row].images]
                inputs["image_sizes"] = torch.tensor([(height, width) for width, height in sizes])
        yield inputs


def _pixels(patches: np.ndarray, grids: np.ndarray, vision: AnyVisionConfig) -> np.ndarray:
    """Tiles, normalised [k, 3, height, width]; where an encoder takes no tiles, the patches [1, n, P*P*3] in order.

    Args:
      patches: uint8 [k, N, P*P*3].
      grids: [k, 2], patches down and across.
      vision: of the model.
    """
    mean, std = np.array(vision.mean), np.array(vision.std)
    if vision.image_size is None:  # the last slots are not full
        real = np.concatenate([slot[:count] for slot, count in zip(patches, grids.prod(axis=1), strict=True)])
        pixels = real.reshape(1, len(real), -1, 3)
        return ((pixels / 255 - mean) / std).reshape(1, len(real), -1)
    tiles = unpatchify(patches, tuple(grids[0]), vision.patch_size)
    return ((tiles / 255 - mean) / std).transpose(0, 3, 1, 2)


def _ours(
    opened: Opened, max_new_tokens: int, prompts: Sequence[Conversation]
) -> tuple[Batch, np.ndarray, list[list[int]]]:
    model = Model(opened.system, opened.params, opened.tokenizer, Compute(dtype="float32"))
    batch = model.batch(prompts, max_tiles=2)
    stop = opened.tokenizer.stop_id(opened.system.chat_template)
    limits = np.full(len(prompts), max_new_tokens)
    answers = generate(VLM(opened.system.model, model.compute), model.params, batch, limits, stop)
    return batch, np.asarray(model.logits(batch)), answers


class _Reference:
    """The folder in `transformers`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(folder).float().eval()

    def __call__(self, inputs: dict[str, Any], max_new_tokens: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """Logits [T, V] of a prompt, the greedy answer with its stop token, by how much each token was preferred."""
        torch = _torch()
        with torch.no_grad():
            logits = self.model(**inputs).logits[0].numpy()
            written = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        best = torch.stack([step[0] for step in written.logits]).topk(2).values.numpy()
        return logits, written.sequences[0, len(inputs["input_ids"][0]) :].tolist(), best[:, 0] - best[:, 1]


def _compare(
    ours: np.ndarray, answer: list[int], theirs: np.ndarray, their_answer: list[int], gaps: np.ndarray
) -> Agreement:
    """Of one row. Our answer comes without the stop token: where it ends early, that was the next one."""
    expected, found = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (theirs, ours))
    pairs = zip(answer, their_answer, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(answer), len(their_answer)))
    stopped = equal == len(answer) == len(their_answer) - 1  # theirs goes on with the stop token alone
    equal += stopped
    return Agreement(
        difference=float(np.abs(ours - theirs).max()),
        divergence=float(np.mean(np.sum(np.exp(expected) * (expected - found), axis=-1))),
        tokens=len(their_answer),
        equal=equal,
        gap=None if equal == len(their_answer) else float(gaps[equal]),
    )


def _torch() -> Any:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"--verify compares with transformers in PyTorch, but {error.name} is not installed") from None
    return torch
