"""The runner: asks every question of a benchmark, with its pictures and under controls, and scores the answers.

A score means little alone, so each comes with an interval and two baselines: the best constant answer (what can be had
without looking at anything) and the same model looking at blank pictures (what it knows from the question's words).
Two more controls (`vlm_jax.evaluation.controls`), shuffled and wrong pictures, are asked for by name.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.images import image_size
from vlm_jax.errors import UserError
from vlm_jax.evaluation.benchmarks import Benchmark, Question, Records, records, single_question
from vlm_jax.evaluation.controls import CONTROLS, Pictures
from vlm_jax.evaluation.metrics import METRICS, Metric

Answer = Callable[[Sequence[Conversation]], Sequence[str]]
"""A model as the runner sees it: conversations that end with a user turn in, one answer each out, in order."""

Grid = Callable[[int, int, int], tuple[int, int]]
"""(width, height) of an image in pixels, images of its question -> its tiles (across, down), thumbnail not counted."""

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
      controls: name -> score of the same questions with the pictures of that control, for those that were asked for.
        What had no pictures under a control is not counted; None if that is so of all questions.
    """

    metric: str
    value: float
    n: int
    interval: tuple[float, float]
    standard_error: float
    majority: float
    majority_answer: str
    controls: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Scores by task, and one row (plain JSON values) per question.

    A row holds `id`, `task`, `question`, `answers`, `prediction`, `score`, `blank_prediction` and `blank_score` (None
    where it was not asked so), the same two of every other control that was asked for (`wrong_prediction`, ...),
    `width` and `height` of the first picture in pixels, `grids` ([across, down] per picture) and `tiles` (their number
    without thumbnails, summed over the pictures). `grids` and `tiles` are None when the runner was not told how the
    model tiles.
    """

    benchmark: str
    tasks: dict[str, TaskScore]
    rows: list[dict[str, Any]]

    def report(self) -> dict[str, dict[str, Any]]:
        """Returns what `report.json` holds under `tasks`: name -> metric, value, n, interval, baselines, controls.

        The blank picture is a baseline; `controls` holds the others, and is not there if none was asked for.
        """
        return {name: _plain(score) for name, score in self.tasks.items()}


def evaluate(
    answer: Answer,
    benchmark: Benchmark,
    *,
    reference: Records | None = None,
    controls: Sequence[str] = ("blank",),
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
      controls: names in `CONTROLS`; under each of them everything is asked once more.
      grid: how the model tiles; for the rows only.
      chunk_size: questions handed to `answer` at a time.
      progress: called with the number of questions answered since its last call; `len(questions)` in all, and as many
        again for every control.
      seed: of the bootstrap and the controls.

    Raises:
      UserError: naming the question whose picture cannot be read.
      ValueError: if `answer` does not give one answer per conversation.
    """
    questions = benchmark.questions
    sizes = [_image_sizes(question) for question in questions]
    predictions = _ask(answer, (question.conversation for question in questions), chunk_size, progress)
    controlled = {
        name: _ask(answer, _with_pictures(questions, CONTROLS[name](questions, seed)), chunk_size, progress)
        for name in controls
    }
    constants = majority_answers(benchmark, reference)
    rows = []
    for i, question in enumerate(questions):
        metric = METRICS[benchmark.metric_by_task[question.task]]
        said = {name: answers[i] for name, answers in controlled.items()}
        rows.append(_row(question, metric, predictions[i], said, sizes[i], grid))
    tasks = {
        task: _task_score(name, [row for row in rows if row["task"] == task], constants[task], controls, seed)
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
    return {task: best_constant(METRICS[benchmark.metric_by_task[task]], golds[task]) for task in golds}


def best_constant(metric: Metric, golds: Sequence[str]) -> str:
    """The answer that scores best if it is given to every question with these gold answers; see `majority_answers`."""
    counts = collections.Counter(golds)
    candidates = sorted(counts, key=lambda text: (-counts[text], text))[:CONSTANT_CANDIDATES]
    if metric is METRICS["exact_match"]:
        return candidates[0]
    step = max(1, len(golds) // CONSTANT_REFERENCES)
    sample = golds[::step]
    return max(candidates, key=lambda candidate: sum(metric(candidate, [gold]) for gold in sample))


def bootstrap_interval(scores: Sequence[float], *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), with `RESAMPLES` seeded resamples of the questions."""
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    n = int(counts.sum())
    # Drawing n scores with replacement is drawing how often each distinct score comes up.
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(draws @ values / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ask(
    answer: Answer,
    conversations: Iterable[Conversation | None],
    chunk_size: int,
    progress: Callable[[int], None] | None,
) -> list[str | None]:
    """One answer per conversation, in order; None for None. Conversations are made when it is their turn."""
    said: list[str | None] = []
    waiting = iter(conversations)
    while chunk := list(itertools.islice(waiting, chunk_size)):
        asked = [conversation for conversation in chunk if conversation is not None]
        replies = list(answer(asked)) if asked else []
        if len(replies) != len(asked):
            raise ValueError(f"the model gave {len(replies)} answers to {len(asked)} questions")
        in_order = iter(replies)
        said.extend(None if conversation is None else next(in_order) for conversation in chunk)
        if progress is not None:
            progress(len(chunk))
    return said


def _with_pictures(questions: Sequence[Question], pictures: Pictures) -> Iterable[Conversation | None]:
    for number, question in enumerate(questions):
        images = pictures(number)
        yield None if images is None else dataclasses.replace(question.conversation, images=images)


def _image_sizes(question: Question) -> list[tuple[int, int]]:
    images = enumerate(question.conversation.images)
    return [image_size(data, f"question '{question.id}', image {number}") for number, data in images]


def _row(
    question: Question,
    metric: Metric,
    prediction: str,
    controlled: Mapping[str, str | None],
    sizes: Sequence[tuple[int, int]],
    grid: Grid | None,
) -> dict[str, Any]:
    grids = None if grid is None else [list(grid(*size, len(sizes))) for size in sizes]
    width, height = sizes[0] if sizes else (None, None)
    controls: dict[str, Any] = {}
    for name, said in {"blank": None, **controlled}.items():
        controls[f"{name}_prediction"] = said
        controls[f"{name}_score"] = None if said is None else metric(said, question.answers)
    return {
        "id": question.id,
        "task": question.task,
        "question": question.text,
        "answers": list(question.answers),
        "prediction": prediction,
        "score": metric(prediction, question.answers),
        **controls,
        "width": width,
        "height": height,
        "grids": grids,
        "tiles": None if grids is None else sum(across * down for across, down in grids),
    }


def _task_score(
    name: str, rows: Sequence[Mapping[str, Any]], constant: str, controls: Sequence[str], seed: int
) -> TaskScore:
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
        controls={control: _mean(row[f"{control}_score"] for row in rows) for control in controls},
    )


def _mean(scores: Iterable[float | None]) -> float | None:
    counted = [score for score in scores if score is not None]
    return float(np.mean(counted)) if counted else None


def _plain(score: TaskScore) -> dict[str, Any]:
    others = {name: value for name, value in score.controls.items() if name != "blank"}
    return {
        "metric": score.metric,
        "value": score.value,
        "n": score.n,
        "interval": list(score.interval),
        "baselines": {"majority": score.majority, "blank": score.controls.get("blank")},
        **({"controls": others} if others else {}),
    }
