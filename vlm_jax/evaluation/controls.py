"""Controls: the same questions beside pictures that do not show what is asked, to see that a model looks at pictures.

A model that answers from its picture falls to what guessing gives under every control; one that answers from the words
of the question scores the same under all of them. To add a control, write a function from the questions and a seed to
the pictures of the question by number, and enter it in `CONTROLS`.
"""

from __future__ import annotations

import collections
import functools
import io
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from vlm_jax.data.images import decode_image, image_size
from vlm_jax.errors import UserError, did_you_mean
from vlm_jax.evaluation.benchmarks import Question

Pictures = Callable[[int], tuple[bytes, ...] | None]
"""Number of a question -> encoded pictures in place of its own, as many as it has; None if there are none to be had."""

Control = Callable[[Sequence[Question], int], Pictures]
"""All questions that are asked, a seed -> the pictures to ask them with. Pictures are made one question at a time, so
that those of a large benchmark are never all in memory.

Raises (also the functions that it returns):
  UserError: naming the question whose picture cannot be read.
"""

BLANK_COLOUR = (124, 116, 104)
"""The ImageNet mean (0.485, 0.456, 0.406) in bytes: what normalisation turns into zeros."""

SHUFFLED_BLOCKS = 256
"""A shuffled picture has at least so many blocks along its longer side, or one a pixel."""

OWN = 3
"""What it costs when a question gets its own pictures, where equal answers cost 1: more than two of those."""


def blank(questions: Sequence[Question], seed: int) -> Pictures:
    """Plain grey pictures of the same sizes: what the model knows from the words, and from how many tiles there are."""

    def pictures(number: int) -> tuple[bytes, ...]:
        images = questions[number].conversation.images
        return tuple(_grey(*image_size(data, _name(questions[number], i))) for i, data in enumerate(images))

    return pictures


def shuffled(questions: Sequence[Question], seed: int) -> Pictures:
    """The same pictures with their pixels in random order: the colours stay, all that they draw is gone.

    Single pixels change places in pictures of up to 511 pixels (longer side); in larger ones squares of a 256th of the
    longer side do. Single pixels would not survive there: the model sees a large picture made smaller, which averages
    them to one plain colour, and the control would be the blank one again. Larger squares would leave letters and faces
    whole; a 256th of a page is a piece of a stroke.

    What can be told from colours alone survives and may score above guessing: which of a few photographs a crop comes
    from, whether a chart has a red bar. Reading, counting and pointing must fall to the baseline. A picture of one
    pixel, or of one colour, is not changed by it.
    """

    def pictures(number: int) -> tuple[bytes, ...]:
        question = questions[number]
        own = zlib.crc32(question.id.encode("utf-8", "surrogatepass"))  # the same however many others are asked
        return tuple(
            _png(_with_blocks_shuffled(decode_image(data, _name(question, i)), np.random.default_rng([seed, own, i])))
            for i, data in enumerate(question.conversation.images)
        )

    return pictures


def wrong(questions: Sequence[Question], seed: int) -> Pictures:
    """The pictures of another question of the same task, one whose gold answer is another wherever that can be.

    Nothing about these pictures is unusual, so a model cannot notice that it is being tested, and what it has learned
    of the task's pictures in general does not help. Because equal answers are avoided, a model that reads its picture
    well may score *below* the constant answer.

    Every picture is used once, by another question with as many pictures. Where a question has no such partner (the
    only one of its task, or all others are about the same picture), it borrows from a question with another number of
    pictures, whose pictures are repeated or cut off, or else from another task. Where all questions are about the same
    picture, there is no wrong one.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for number, question in enumerate(questions):
        if images := question.conversation.images:
            groups.setdefault((question.task, len(images)), []).append(number)
    rng = np.random.default_rng([seed, 21])
    donors: dict[int, int | None] = {}
    for group in groups.values():
        donors |= {
            i: _borrowed(questions, i, rng) if d is None else d for i, d in deranged(questions, group, rng).items()
        }

    def pictures(number: int) -> tuple[bytes, ...] | None:
        own, donor = _images(questions, number), donors.get(number)
        if donor is None:
            return None if own else ()
        return tuple(itertools.islice(itertools.cycle(_images(questions, donor)), len(own)))

    return pictures


CONTROLS: Mapping[str, Control] = {"blank": blank, "shuffled": shuffled, "wrong": wrong}
"""Name -> control. The first line of its docstring is its description in `--help`."""


def check_names(names: Sequence[str], what: str) -> None:
    """Holds that `names` are those of controls, each at most once.

    Args:
      names: of controls.
      what: the flag or field they come from, for the error.

    Raises:
      UserError: for an unknown name, with the nearest known one, or one that comes twice.
    """
    for i, name in enumerate(names):
        if name not in CONTROLS:
            known = ", ".join(CONTROLS)
            raise UserError(f"{what}: unknown control '{name}'{did_you_mean(name, CONTROLS)}; known controls: {known}")
        if name in names[:i]:
            raise UserError(f"{what}: control '{name}' is there twice")


def deranged(questions: Sequence[Question], group: Sequence[int], rng: np.random.Generator) -> dict[int, int | None]:
    """Gives every question of a group the pictures of another one, each to one question.

    A random permutation, in which pairs that clash change partners until no change helps. For answers alone this is as
    good as can be: where a clash is left, one answer belongs to more than half of the group, and 2 x its count - n
    clashes stay in every permutation.

    Args:
      questions: of the benchmark.
      group: numbers of those that swap.
      rng: where the permutation comes from.

    Returns:
      Number of a question -> number of the one whose pictures it gets; None where these would be its own again (equal
      bytes count as its own).
    """
    answers = [{answer.strip().lower() for answer in questions[i].answers} for i in group]

    def clash(a: int, b: int) -> int:
        if _images(questions, group[a]) == _images(questions, group[b]):
            return OWN
        return int(not answers[a].isdisjoint(answers[b]))

    everyone = range(len(group))
    donor = rng.permutation(len(group)).tolist()
    clashes = list(map(clash, everyone, donor))

    def improved(a: int) -> bool:
        """Swaps the pictures of `a` with those of the first partner, in random order, for whom the sum falls."""
        for b in rng.permutation(len(group)).tolist():
            after = clash(a, donor[b]), clash(b, donor[a])
            if sum(after) < clashes[a] + clashes[b]:
                donor[a], donor[b] = donor[b], donor[a]
                clashes[a], clashes[b] = after
                return True
        return False

    counts = collections.Counter(answer for own in answers for answer in own)
    least = max(0, 2 * max(counts.values(), default=0) - len(group))  # stay whatever is tried, which may take long
    while sum(improved(a) for a in everyone if clashes[a] and sum(clashes) > least):
        pass
    return {group[a]: group[donor[a]] if clashes[a] < OWN else None for a in everyone}


def _borrowed(questions: Sequence[Question], number: int, rng: np.random.Generator) -> int | None:
    """The question to borrow pictures from where the group has none: of the same task, with another answer, if any."""
    question, own = questions[number], _images(questions, number)
    others = [i for i in rng.permutation(len(questions)).tolist() if _images(questions, i) not in ((), own)]

    def distance(i: int) -> tuple[bool, bool]:
        return questions[i].task != question.task, questions[i].answers == question.answers

    return min(others, key=distance, default=None)


def _with_blocks_shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    side = max(1, max(width, height) // SHUFFLED_BLOCKS)
    down, across = -(-height // side), -(-width // side)
    padded = np.pad(pixels, ((0, down * side - height), (0, across * side - width), (0, 0)), "edge")
    blocks = padded.reshape(down, side, across, side, 3).swapaxes(1, 2).reshape(down * across, side, side, 3)
    mixed = blocks[rng.permutation(len(blocks))].reshape(down, across, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(mixed.reshape(down * side, across * side, 3)[:height, :width]))


@functools.lru_cache(maxsize=256)
def _grey(width: int, height: int) -> bytes:
    return _png(Image.new("RGB", (width, height), BLANK_COLOUR))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _images(questions: Sequence[Question], number: int) -> tuple[bytes, ...]:
    return questions[number].conversation.images


def _name(question: Question, image: int) -> str:
    return f"question '{question.id}', image {image}"
