"""The page of `vlm_jax.data.show`: what of it is computed, for the template `show.html`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.inspection.expected import Packing
from vlm_jax.data.inspection.pictures import pictures_of
from vlm_jax.data.inspection.pieces import Piece, pieces_of, visible
from vlm_jax.data.page import COLOURS, render_page
from vlm_jax.data.plan.index import BAD, Index
from vlm_jax.data.prepare import Example, Preparer
from vlm_jax.data.sources import Source, place_of

MAX_PIECES = 1200
"""Pieces of one sample that are shown, so that a book does not bury the others."""


def render(
    source: Source,
    preparer: Preparer,
    index: Index,
    packing: Packing | None,
    *,
    lengths: str,
    samples: int,
    rows: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> str:
    """The whole page.

    Args:
      source: the records.
      preparer: makes examples of them.
      index: of the source.
      packing: of the beginning of an epoch, if a record is good.
      lengths: in words, what tokens are counted with.
      samples, rows: how many of each are shown.
      seed: of their choice.
      advance: called for every sample.
    """
    colours = {task: number % COLOURS for number, task in enumerate(index.tasks)}
    cards = []
    for number in choose(index, samples, seed):
        cards.append(_card(source, number, preparer, colours))
        advance()
    bars, most = _bars(source, index, packing, colours, rows, seed) if packing else ([], 0)
    values = dict(
        name=visible(source.name),
        lengths=lengths,
        records=len(index.sizes),
        good=int((index.task_ids != BAD).sum()),
        tiles_of_all=int(index.sizes[:, 1].sum(dtype=np.int64)),
        tokens_of_all=int(index.sizes[:, 0].sum(dtype=np.int64)),
        packing=packing,
        tasks=[(visible(task), colours[task], int((index.task_ids == i).sum())) for i, task in enumerate(index.tasks)],
        cards=cards,
        bars=bars,
        most_segments=most,
        bad=_bad(index),
        seed=seed,
        layout=preparer.layout,
        template=preparer.template.name,
        reduction=preparer.loss_reduction,
    )
    return render_page(Path(__file__).parent / "show.html", values, {"visible": visible})


def choose(index: Index, count: int, seed: int) -> list[int]:
    """Numbers of up to `count` good records drawn at random by seed, the tasks taking turns."""
    rng = np.random.default_rng([seed, 11])
    groups = [rng.permutation(np.flatnonzero(index.task_ids == task)).tolist() for task in range(len(index.tasks))]
    turns = range(max(map(len, groups), default=0))
    return [group[turn] for turn in turns for group in groups if turn < len(group)][:count]


def _card(source: Source, number: int, preparer: Preparer, colours: dict[str, int]) -> dict[str, Any]:
    """One sample; a record that turns out bad has an `error` in place of all else."""
    try:
        conversation = source[number]
        example = preparer(conversation)
        pictures = pictures_of(conversation, example, preparer)
    except RecordError as error:
        return {"place": visible(place_of(source, number)), "error": visible(f"{error.reason}: {error.detail}")}
    pieces = pieces_of(example, preparer.tokenizer)
    return {
        "place": visible(conversation.name),
        "error": "",
        "task": visible(conversation.task),
        "colour": colours.get(conversation.task, 0),
        "independent": conversation.independent,
        "pictures": pictures,
        "pieces": _shown(pieces[:MAX_PIECES], float(example.loss_weights.max(initial=0.0))),
        "hidden": sum(piece.count for piece in pieces[MAX_PIECES:]),
        **_facts(conversation, example),
    }


def _facts(conversation: Conversation, example: Example) -> dict[str, int]:
    return {
        "tokens": len(example.tokens),
        "tiles": len(example.patches),
        "images": len(conversation.images),
        "visual": int((example.visual >= 0).sum()),
        "learned": int((example.loss_weights > 0).sum()),
    }


def _shown(pieces: Sequence[Piece], most: float) -> list[dict[str, Any]]:
    """Pieces with the share of the largest weight, and the branch where one begins."""
    found, branch = [], 0
    for piece in pieces:
        found.append(
            {
                **piece._asdict(),
                "text": visible(piece.text),
                "share": piece.weight / most if most else 0.0,
                "begins": piece.branch if piece.branch != branch else 0,
            }
        )
        branch = piece.branch
    return found


def _bars(
    source: Source, index: Index, packing: Packing, colours: dict[str, int], count: int, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the window drawn at random, in their order; and the most records that any row holds."""
    rng = np.random.default_rng([seed, 12])
    chosen = sorted(rng.permutation(len(packing.rows))[:count].tolist())
    bars = []
    for number in chosen:
        segments = [_segment(source, index, record, colours) for record in packing.rows[number].tolist()]
        tokens, tiles = (sum(segment[key] for segment in segments) for key in ("tokens", "tiles"))
        bars.append(
            {
                "number": number + 1,
                "segments": segments,
                "tokens": tokens,
                "tiles": tiles,
                "free_tokens": packing.tokens - tokens,
                "free_tiles": packing.tiles - tiles,
                "token_fill": tokens / packing.tokens,
                "tile_fill": tiles / packing.tiles if packing.tiles else 1.0,
            }
        )
    return bars, max(map(len, packing.rows))


def _segment(source: Source, index: Index, record: int, colours: dict[str, int]) -> dict[str, Any]:
    tokens, tiles = index.sizes[record].tolist()
    task = index.tasks[index.task_ids[record]]
    return {"place": visible(place_of(source, record)), "tokens": tokens, "tiles": tiles, "colour": colours[task]}


def _bad(index: Index) -> list[dict[str, Any]]:
    """Bad records by reason, the most frequent first, with a few examples of each."""
    examples: dict[str, list[str]] = defaultdict(list)
    counts = Counter(error.reason for error in index.bad.values())
    for number in sorted(index.bad):
        error = index.bad[number]
        if len(examples[error.reason]) < 3:
            examples[error.reason].append(visible(str(error)[:400]))
    return [{"reason": reason, "count": count, "examples": examples[reason]} for reason, count in counts.most_common()]
