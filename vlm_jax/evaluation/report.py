"""The report of a run: `report.json` for programs, and `report.html` for people, one file that opens offline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError
from vlm_jax.evaluation import charts, gallery
from vlm_jax.files import write_atomically

REPORT_KEYS = (
    "wall_seconds",
    "stages",
    "tasks",
    "peak_memory_bytes",
    "versions",
    "device",
    "config_digest",
    "date",
)
"""The keys of `report.json`, all required.

`wall_seconds`: the whole run, in seconds. `stages`: name -> figures (`steps`, `seconds`, `first_loss`, `last_loss`,
`answers_per_second` and others, all numbers), in order. `tasks`: see `EvaluationResult.report`.
`peak_memory_bytes`: of the process and its workers, their peaks added. `versions`: package -> version. `device`:
in words. `config_digest`: of the whole config. `date`: ISO 8601."""

METRIC_LABELS = {
    "exact_match": "exact match",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed accuracy, 5 %",
    "box_iou_accuracy": "box with IoU ≥ 0.5",
}

STAGE_LABELS = {
    "steps": "steps",
    "seconds": "time",
    "first_loss": "first loss",
    "last_loss": "last loss",
    "answers_per_second": "answers / s",
    "tokens_per_second": "tokens / s",
    "tiles_per_second": "tiles / s",
}


def write_report(
    workdir: str | os.PathLike[str],
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Sequence[bytes]],
    *,
    tiler: gallery.Tiler | None = None,
    title: str = "",
    gallery_size: int = 24,
    seed: int = 0,
) -> None:
    """Writes `report.json` and `report.html` into `workdir`, each whole or not at all.

    Args:
      workdir: an existing folder; curves come from its `metrics.jsonl` (JSON lines with `stage`, `step`, `loss`,
        `learning_rate`), where there is one.
      report: has the keys `REPORT_KEYS`.
      rows: rows of an `EvaluationResult`.
      images: id of a row -> the encoded pictures of its question; only those of the gallery are looked at.
      tiler: cuts a picture as the model's data pipeline does, to show the tiles.
      title: heading of the page; the name of the folder if empty.
      gallery_size: number of questions shown.
      seed: of the choice of questions.

    Raises:
      UserError: if a file cannot be written (a full disk, a folder without permission).
      ValueError: if the report lacks a key or has an unknown one.
    """
    workdir = Path(workdir)
    if set(report) != set(REPORT_KEYS):
        raise ValueError(f"report.json has wrong keys: {sorted(set(report) ^ set(REPORT_KEYS))}")
    metrics = charts.read_metrics(workdir / "metrics.jsonl")
    shown = [gallery.card(row, images[row["id"]], tiler) for row in gallery.choose(rows, gallery_size, seed)]
    page = render(report, rows, metrics, shown, title=title or workdir.resolve().name, seed=seed)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    # The page first: a run that has a report.json is finished.
    for file, content in (("report.html", page), ("report.json", text + "\n")):
        try:
            write_atomically(workdir / file, content)
        except OSError as error:
            raise UserError(f"{workdir / file}: cannot be written: {error.strerror or error}") from None


def render(
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: charts.Metrics,
    cards: Sequence[Mapping[str, Any]],
    *,
    title: str,
    seed: int,
) -> str:
    """Returns the page. Everything that is not markup of the template is escaped: predictions are untrusted text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=charts.number, duration=charts.duration, figure=_figure)
    tasks = report["tasks"]
    return environment.get_template("report.html").render(
        report=report,
        title=title,
        seed=seed,
        cards=cards,
        tasks=[_task(name, score) for name, score in tasks.items()],
        mean_score=sum(score["value"] for score in tasks.values()) / len(tasks) if tasks else None,
        questions=sum(score["n"] for score in tasks.values()),
        right=sum(row["score"] >= 1 for row in rows),
        stages=[_stage(name, figures, metrics) for name, figures in report["stages"].items()],
        time_parts=_time_parts(report),
        unreadable=metrics.unreadable,
        breakdowns=[
            (heading, table)
            for heading, table in (
                ("Score by number of tiles", charts.by_tiles(rows)),
                ("Score by longer side of the picture", charts.by_size(rows)),
            )
            if table is not None
        ],
        task_names=list(dict.fromkeys(shown["task"] for shown in cards)),
    )


def table(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scores in lines for a terminal: a task a line, with its baselines and the controls that were asked for."""
    columns = {name: 0 for task in tasks.values() for name in references(task)}
    lines = [f"{'task':<10} {'metric':<18} {'score':>6}" + "".join(f"  {name:>8}" for name in columns)] if tasks else []
    for name, task in tasks.items():
        line = f"{name:<10} {task['metric']:<18} {task['value']:>6.1%}"
        given = references(task)
        lines.append(line + "".join(f"  {given[c]:>8.1%}" if c in given else f"  {'-':>8}" for c in columns))
    return lines


def references(task: Mapping[str, Any]) -> dict[str, float]:
    """What a task's score stands beside, by name: the baselines, then the controls; without what was not measured."""
    both = {**task["baselines"], **task.get("controls", {})}
    return {name: value for name, value in both.items() if value is not None}


def _task(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    baselines = {key: value for key, value in score["baselines"].items() if value is not None}
    best = max(baselines.values(), default=0.0)
    return {
        **score,
        "name": name,
        "metric_label": METRIC_LABELS.get(score["metric"], score["metric"]),
        "baselines": baselines,
        "margin": score["value"] - best,
        "stands_out": score["interval"][0] > best,
    }


def _stage(name: str, figures: Mapping[str, Any], metrics: charts.Metrics) -> dict[str, Any]:
    entries = metrics.stages.get(name, [])
    drawn = [charts.curve("loss", entries, "loss"), charts.curve("learning rate", entries, "learning_rate")]
    labelled = [(STAGE_LABELS.get(key, key.replace("_", " ")), _figure(key, value)) for key, value in figures.items()]
    return {"name": name, "figures": labelled, "curves": [c for c in drawn if c is not None]}


def _time_parts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the time went: each stage, then all that is no stage (data, evaluation, export)."""
    parts = [(name, figures["seconds"]) for name, figures in report["stages"].items() if "seconds" in figures]
    rest = report["wall_seconds"] - sum(seconds for _, seconds in parts)
    total = max(report["wall_seconds"], 1e-9)
    parts.append(("data, evaluation, export", max(rest, 0.0)))
    return [{"name": name, "seconds": seconds, "percent": 100 * seconds / total} for name, seconds in parts]


def _figure(key: str, value: Any) -> str:
    """A figure of a stage in words: seconds as a duration, whole numbers with separators, others to three digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("seconds"):
        return charts.duration(value)
    return f"{value:,}" if isinstance(value, int) else charts.number(value)
