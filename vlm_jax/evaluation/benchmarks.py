"""Benchmarks: what is asked, which answers count, and by which metric each task is scored.

A benchmark is read from a sequence of conversations whose last turn is the gold answer. To add one, write a function
from a source to a `Benchmark` and enter it in `BENCHMARKS`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

from vlm_jax.data.boxes import parse_boxes
from vlm_jax.data.conversation import IMAGE, Conversation
from vlm_jax.data.sources import Source
from vlm_jax.errors import UserError

Records = Source | Sequence[Conversation]
"""What a benchmark is read from: a length, and conversations by number."""

TASK_METRICS: dict[str, str] = {
    "digits": "exact_match",
    "count": "exact_match",
    "document": "anls",
    "chart": "relaxed_accuracy",
    "point": "box_iou_accuracy",
    "photo": "exact_match",
}
"""Task of the pocket data -> name of its metric in `vlm_jax.evaluation.metrics.METRICS`."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about pictures.

    Attributes:
      id: unique within its benchmark.
      task: the name under which reports count it.
      conversation: what the model is given; its last turn is the user's, the gold answer is not in it.
      answers: accepted answers.
    """

    id: str
    task: str
    conversation: Conversation
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The last user turn without its image marks."""
        return self.conversation.turns[-1].text.replace(IMAGE, "").strip()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Questions and how they are scored.

    Attributes:
      name: as given to `--benchmark`.
      metric_by_task: name of the metric (`metrics.METRICS`) of every task that occurs.
      questions: in the order of the source.
      left_out: number of conversations of the source that are no single question, which are not asked.
    """

    name: str
    metric_by_task: Mapping[str, str]
    questions: tuple[Question, ...]
    left_out: int = 0

    def limited(self, per_task: int) -> Benchmark:
        """Returns the benchmark with the first `per_task` questions of each task only."""
        seen: dict[str, int] = {}
        kept = []
        for question in self.questions:
            seen[question.task] = seen.get(question.task, 0) + 1
            if seen[question.task] <= per_task:
                kept.append(question)
        return dataclasses.replace(self, questions=tuple(kept))


def pocket(source: Records) -> Benchmark:
    """The pocket data: handwritten digits, counting, documents, charts, pointing, photographs.

    Every conversation of one user turn and one assistant turn (after an optional system message) is a question;
    conversations of several questions are left out and counted.

    Raises:
      UserError: naming the conversation whose task has no metric, whose id occurs twice, or whose gold box cannot be
        read; or that there is no question at all.
    """
    benchmark = _read(source, "pocket", TASK_METRICS)
    unknown = next((question for question in benchmark.questions if question.task not in TASK_METRICS), None)
    if unknown is not None:
        known = ", ".join(TASK_METRICS)
        name = f"benchmark pocket: conversation '{unknown.id}'"
        raise UserError(f"{name}: task '{unknown.task}' has no metric; known tasks: {known}")
    return benchmark


def questions(source: Records) -> Benchmark:
    """Questions of your own: equal answers count; boxes from IoU 0.5 on, where all answers of a task have one.

    What is a question, and what is left out, is as in `pocket`; its tasks are scored as there.

    Raises:
      UserError: as `pocket`, but for tasks.
    """
    benchmark = _read(source, "questions", {})
    boxes = dict.fromkeys((question.task for question in benchmark.questions), True)
    for question in benchmark.questions:
        boxes[question.task] &= bool(parse_boxes(question.answers[0]))
    metrics = {t: TASK_METRICS.get(t, "box_iou_accuracy" if boxes[t] else "exact_match") for t in boxes}
    return dataclasses.replace(benchmark, metric_by_task=metrics)


def _read(source: Records, name: str, metrics: Mapping[str, str]) -> Benchmark:
    found, left_out = [], 0
    ids: set[str] = set()
    for conversation in records(source):
        question = single_question(conversation)
        if question is None:
            left_out += 1
            continue
        _check(question, ids, name, metrics.get(question.task))
        found.append(question)
    if not found:
        raise UserError(f"benchmark {name}: no question among {left_out} conversations of the data")
    tasks = {question.task for question in found}
    return Benchmark(name, {t: m for t, m in metrics.items() if t in tasks}, tuple(found), left_out)


def records(source: Records) -> Iterator[Conversation]:
    """All conversations of a source in order. A source is indexed, because it need not know how to be iterated."""
    return (source[number] for number in range(len(source)))


def single_question(conversation: Conversation) -> Question | None:
    """Splits a conversation into a question and its gold answer; None if it is not one question and one answer."""
    turns = conversation.turns
    if tuple(turn.role for turn in turns if turn.role != "system") != ("user", "assistant"):
        return None
    asked = dataclasses.replace(conversation, turns=turns[:-1], independent=False)
    return Question(conversation.id, conversation.task, asked, (turns[-1].text,))


def _check(question: Question, ids: set[str], benchmark: str, metric: str | None) -> None:
    name = f"benchmark {benchmark}: conversation '{question.id}'"
    if question.id in ids:
        raise UserError(f"{name}: this id occurs twice")
    if metric == "box_iou_accuracy" and not parse_boxes(question.answers[0]):
        raise UserError(f"{name}: no box [x1, y1, x2, y2] in the gold answer {question.answers[0]!r}")
    ids.add(question.id)


BENCHMARKS: dict[str, Callable[[Records], Benchmark]] = {"pocket": pocket, "questions": questions}
"""Name -> reader. The first line of a reader's docstring is its description in `--help`."""


def reader(name: str) -> Callable[[Records], Benchmark]:
    """Returns the reader of the benchmark `name`.

    Raises:
      UserError: listing the known names, if there is none of this name.
    """
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known benchmarks: {', '.join(BENCHMARKS)}"
        raise UserError(f"--benchmark: unknown benchmark '{name}'; {hint}")
    return BENCHMARKS[name]
