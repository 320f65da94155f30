"""Metrics: pure functions that score one prediction against the accepted answers of one question.

Every metric has the signature `metric(prediction, answers) -> float in [0, 1]` and takes the best score over `answers`.
The score of a task is the mean over its questions (`vlm_jax.evaluation.runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from vlm_jax.data.boxes import Box, parse_boxes

Metric = Callable[[str, Sequence[str]], float]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals an answer after stripping outer whitespace and lower-casing, else 0.

    Source: the exact-match scorer of InternVL's suite (`eval/vqa/evaluate_vqa.py`, used for AI2D and OCR-VQA).
    """
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity, for one question: 1 - edit distance / longer length.

    Both sides are stripped, lower-cased and have runs of whitespace made one space, as in the scorer that DocVQA and
    InfographicVQA publish (InternVL: `eval/vqa/infographicsvqa_eval.py`). That scorer divides by the length *before*
    this normalisation, so that trailing blanks raise a score; here the length is the one that was compared.

    Args:
      prediction: what the model said.
      answers: accepted answers; the closest counts.
      threshold: similarities below it count as 0 (0.5 in Biten et al., "Scene Text Visual Question Answering", 2019,
        eq. 1; a similarity of exactly 0.5 stays, as in the published scorer).
    """
    said = _collapsed(prediction)
    similarity = max((Levenshtein.normalized_similarity(said, _collapsed(a)) for a in answers), default=0.0)
    return similarity if similarity >= threshold else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str], tolerance: float = 0.05) -> float:
    """1 if the prediction is within `tolerance` of a numeric answer or equals an answer that is not a number, else 0.

    The error is relative to the *target*, as in the ChartQA paper (Masry et al. 2022, §5.1) and its reference scorer
    (`pix2struct/metrics.py::relaxed_correctness`); InternVL's own script swaps the two. "12%" reads as 0.12, thousands
    separators are not understood, and a target of 0 is compared as text, all as in the reference. Outer whitespace is
    ignored.
    """
    return max((_relaxed_match(prediction.strip(), answer.strip(), tolerance) for answer in answers), default=0.0)


def box_iou_accuracy(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """1 if the first box in the prediction has an IoU of at least `threshold` with the first box of an answer, else 0.

    Source: precision@1 of referring expressions (InternVL's `eval/refcoco/evaluate_grounding.py`). The IoU of boxes in
    thousandths equals that in pixels, because both axes are scaled alike for both boxes. No box in the text scores 0.
    """
    said = parse_boxes(prediction)
    if not said:
        return 0.0
    golds = [boxes[0] for boxes in map(parse_boxes, answers) if boxes]
    return float(any(iou(said[0], gold) >= threshold for gold in golds))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]. A box whose corners are swapped or equal has no area."""
    overlap = _area(Box(max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)))
    union = _area(a) + _area(b) - overlap
    return overlap / union if union > 0 else 0.0


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "box_iou_accuracy": box_iou_accuracy,
}
"""The metrics by the name under which reports show them."""


def _plain(text: str) -> str:
    return text.strip().lower()


def _collapsed(text: str) -> str:
    return " ".join(text.lower().split())


def _relaxed_match(prediction: str, target: str, tolerance: float) -> float:
    number, goal = _as_float(prediction), _as_float(target)
    if number is not None and goal:
        return float(abs(number - goal) / abs(goal) <= tolerance)
    return float(prediction.lower() == target.lower())


def _as_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _area(box: Box) -> float:
    return max(box.x2 - box.x1, 0.0) * max(box.y2 - box.y1, 0.0)
