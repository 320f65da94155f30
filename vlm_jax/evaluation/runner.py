"""The runner: asks every question of a benchmark, with its pictures and with blank ones, and scores the answers.

A score means little alone, so each comes with an interval and two baselines: the best constant answer (what can be had
without looking at anything) and the same model looking at blank pictures (what it knows from the question's words).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.images import image_size
from vlm_jax.errors import UserError
from vlm_jax.evaluation.benchmarks import Benchmark, Question, Records, records, single_question
from vlm_jax.evaluation.metrics import METRICS, Metric

Answer = Callable[[Sequence[Conversation]], Sequence[str]]
"""A model as the runner sees it: conversations that end with a user turn in, one answer each out, in order."""

Grid = Callable[[int, int, int], tuple[int, int]]
"""(width, height) of an image in pixels, images of its question -> its tiles (across, down), thumbnail not counted."""

BLANK_COLOUR = (124, 116, 104)
"""The ImageNet mean (0.485, 0.456, 0.406) in bytes: what normalisation turns into zeros."""

RESAMPLES = 2000
CONSTANT_CANDIDATES, CONSTANT_REFERENCES = 50, 1000
"""How many of the commonest answers `majority_answers` tries, on how many reference questions of a task."""


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """The score of one task, in [0, 1].

    Attributes:
      metric: name in `metrics.METRICS`.
      value: mean score over the questions.
      n: number of questions.
      interval: bootstrap 95 % interval of `value` over resampled questions.
      standard_error: of `value`; standard deviation of the scores / sqrt(n).
      majority: score of the constant answer `majority_answer` on the same questions.
      majority_answer: see `majority_answers`.
      blank: score with blank pictures; None if they were not asked for.
    """

    metric: str
    value: float
    n: int
    interval: tuple[float, float]
    standard_error: float
    majority: float
    majority_answer: str
    blank: float | None


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Scores by task, and one row (plain JSON values) per question.

    A row holds `id`, `task`, `question`, `answers`, `prediction`, `score`, `blank_prediction` and `blank_score` (None
    without the blank run), `width` and `height` of the first picture in pixels, `grids` ([across, down] per picture)
    and `tiles` (their number without thumbnails, summed over the pictures). `grids` and `tiles` are None when the
    runner was not told how the model tiles.
    """

    benchmark: str
    tasks: dict[str, TaskScore]
    rows: list[dict[str, Any]]

    def report(self) -> dict[str, dict[str, Any]]:
        """Returns what `report.json` holds under `tasks`: name -> metric, value, n, interval, baselines."""
        return {
            name: {
                "metric": score.metric,
                "value": score.value,
                "n": score.n,
                "interval": list(score.interval),
                "baselines": {"majority": score.majority, "blank": score.blank},
            }
            for name, score in self.tasks.items()
        }


def evaluate(
    answer: Answer,
    benchmark: Benchmark,
    *,
    reference: Records | None = None,
    blank: bool = True,
    grid: Grid | None = None,
    chunk_size: int = 64,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Scores a model on a benchmark.

    Args:
      answer: the model.
      benchmark: the questions.
      reference: another split of the same data (training or validation), which the constant answers of the majority
        baseline are taken from. Without it they are taken from the benchmark's own gold answers, which only makes the
        baseline stronger.
      blank: whether to ask everything a second time with blank pictures of the same sizes.
      grid: how the model tiles; for the rows only.
      chunk_size: questions handed to `answer` at a time.
      progress: called with the number of questions answered since its last call; `len(questions)` in all, twice that
        with `blank`.
      seed: of the bootstrap.

    Raises:
      UserError: naming the question whose picture cannot be read.
      ValueError: if `answer` does not give one answer per conversation.
    """
    questions = benchmark.questions
    sizes = [_image_sizes(question) for question in questions]
    predictions = _ask(answer, [q.conversation for q in questions], chunk_size, progress)
    blanks: Sequence[str | None] = [None] * len(questions)
    if blank:
        blanked = [_with_blanks(q.conversation, s) for q, s in zip(questions, sizes, strict=True)]
        blanks = _ask(answer, blanked, chunk_size, progress)
    constants = majority_answers(benchmark, reference)
    rows = [
        _row(question, METRICS[benchmark.metric_by_task[question.task]], said, unseen, size, grid)
        for question, said, unseen, size in zip(questions, predictions, blanks, sizes, strict=True)
    ]
    tasks = {
        task: _task_score(name, [row for row in rows if row["task"] == task], constants[task], blank, seed)
        for task, name in benchmark.metric_by_task.items()
    }
    return EvaluationResult(benchmark.name, tasks, rows)


def majority_answers(benchmark: Benchmark, reference: Records | None = None) -> dict[str, str]:
    """Returns for each task the constant answer that scores best on the reference split by the task's own metric.

    For exact match this is the most common answer. For metrics that give credit to near answers (ANLS, relaxed
    accuracy, IoU) it is at least as strong: the best of the `CONSTANT_CANDIDATES` most common answers, tried on up to
    `CONSTANT_REFERENCES` evenly spaced reference answers. Ties go to the more common, then the alphabetically first.

    Raises:
      UserError: if the reference split lacks a task of the benchmark.
    """
    golds: dict[str, list[str]] = {task: [] for task in benchmark.metric_by_task}
    others = benchmark.questions if reference is None else filter(None, map(single_question, records(reference)))
    for question in others:
        if question.task in golds:
            golds[question.task].extend(question.answers)
    missing = [task for task, answers in golds.items() if not answers]
    if missing:
        raise UserError(f"the reference split of the majority baseline has no question of task '{missing[0]}'")
    return {task: _best_constant(METRICS[benchmark.metric_by_task[task]], golds[task]) for task in golds}


def bootstrap_interval(scores: Sequence[float], *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), with `RESAMPLES` seeded resamples of the questions."""
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    n = int(counts.sum())
    # Drawing n scores with replacement is drawing how often each distinct score comes up.
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(draws @ values / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _best_constant(metric: Metric, golds: Sequence[str]) -> str:
    counts = collections.Counter(golds)
    candidates = sorted(counts, key=lambda text: (-counts[text], text))[:CONSTANT_CANDIDATES]
    if metric is METRICS["exact_match"]:
        return candidates[0]
    step = max(1, len(golds) // CONSTANT_REFERENCES)
    sample = golds[::step]
    return max(candidates, key=lambda candidate: sum(metric(candidate, [gold]) for gold in sample))


def _ask(
    answer: Answer, conversations: Sequence[Conversation], chunk_size: int, progress: Callable[[int], None] | None
) -> list[str]:
    said: list[str] = []
    for start in range(0, len(conversations), chunk_size):
        chunk = conversations[start : start + chunk_size]
        replies = list(answer(chunk))
        if len(replies) != len(chunk):
            raise ValueError(f"the model gave {len(replies)} answers to {len(chunk)} questions")
        said.extend(replies)
        if progress is not None:
            progress(len(chunk))
    return said


def _image_sizes(question: Question) -> list[tuple[int, int]]:
    images = enumerate(question.conversation.images)
    return [image_size(data, f"question '{question.id}', image {number}") for number, data in images]


@functools.lru_cache(maxsize=256)
def _blank_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), BLANK_COLOUR).save(buffer, "PNG")
    return buffer.getvalue()


def _with_blanks(conversation: Conversation, sizes: Sequence[tuple[int, int]]) -> Conversation:
    return dataclasses.replace(conversation, images=tuple(_blank_png(*size) for size in sizes))


def _row(
    question: Question,
    metric: Metric,
    prediction: str,
    blank_prediction: str | None,
    sizes: Sequence[tuple[int, int]],
    grid: Grid | None,
) -> dict[str, Any]:
    grids = None if grid is None else [list(grid(*size, len(sizes))) for size in sizes]
    width, height = sizes[0] if sizes else (None, None)
    return {
        "id": question.id,
        "task": question.task,
        "question": question.text,
        "answers": list(question.answers),
        "prediction": prediction,
        "score": metric(prediction, question.answers),
        "blank_prediction": blank_prediction,
        "blank_score": None if blank_prediction is None else metric(blank_prediction, question.answers),
        "width": width,
        "height": height,
        "grids": grids,
        "tiles": None if grids is None else sum(across * down for across, down in grids),
    }


def _task_score(name: str, rows: Sequence[Mapping[str, Any]], constant: str, blank: bool, seed: int) -> TaskScore:
    scores = np.array([row["score"] for row in rows], np.float64)
    n = len(scores)
    return TaskScore(
        metric=name,
        value=float(scores.mean()),
        n=n,
        interval=bootstrap_interval(scores, seed=seed),
        standard_error=float(scores.std(ddof=1) / n**0.5) if n > 1 else float("nan"),
        majority=float(np.mean([METRICS[name](constant, row["answers"]) for row in rows])),
        majority_answer=constant,
        blank=float(np.mean([row["blank_score"] for row in rows])) if blank else None,
    )
