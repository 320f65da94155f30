import base64
import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from vlm_jax.errors import UserError
from vlm_jax.evaluation import charts, gallery
from vlm_jax.evaluation.report import REPORT_KEYS, table, write_report

EVIL = "<script>alert('x')</script><img src=https://evil.example/a.png> & \"quoted\""


class Page(html.parser.HTMLParser):
    """Collects tags, their attributes and the text, and holds that tags are closed in order."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def png(width, height):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def row(number, task="digits", **changes):
    answer = "<box>[[0, 0, 500, 500]]</box>" if task == "point" else "7"
    base = {
        "id": f"{task}-{number}",
        "task": task,
        "question": "Which digit?",
        "answers": [answer],
        "prediction": answer,
        "score": 1.0,
        "blank_prediction": "1",
        "blank_score": 0.0,
        "width": 48,
        "height": 24,
        "grids": [[2, 1]],
        "tiles": 2,
    }
    return {**base, **changes}


def report(**changes):
    task = {"metric": "exact_match", "value": 0.8, "n": 5, "interval": [0.4, 1.0]}
    figures = {"steps": 30, "seconds": 60.0, "first_loss": 7.0, "last_loss": 0.5, "tokens_per_second": 4012.3}
    base = {
        "wall_seconds": 100.0,
        "stages": {"teacher": figures},
        "tasks": {
            "digits": {**task, "baselines": {"majority": 0.1, "blank": 0.2}},
            "point": {**task, "metric": "box_iou_accuracy", "baselines": {"majority": 0.5, "blank": None}},
        },
        "peak_memory_bytes": 3 << 30,
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
        "config_digest": "abc",
        "date": "2030-01-01T00:00:00+00:00",
    }
    return {**base, **changes}


def written(tmp_path, rows, **options):
    images = {r["id"]: (png(r["width"], r["height"]),) for r in rows}
    write_report(tmp_path, options.pop("report", report()), rows, images, **options)
    return (tmp_path / "report.html").read_text("utf-8")


def metrics_lines(tmp_path, *lines):
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_the_json_holds_exactly_the_report(tmp_path):
    written(tmp_path, [row(0)])
    assert json.loads((tmp_path / "report.json").read_text()) == report()
    assert sorted(report()) == sorted(REPORT_KEYS)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_predictions_are_escaped_and_nothing_is_loaded_from_elsewhere(tmp_path):
    rows = [row(0, prediction=EVIL, question=EVIL, blank_prediction=EVIL, id=EVIL, answers=[EVIL], score=0.0)]
    metrics_lines(tmp_path, *({"stage": "teacher", "step": s, "loss": 1 / s, "learning_rate": s} for s in (1, 2, 3)))
    text = written(tmp_path, rows, title=EVIL)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert text.count("<samp") == 3
    assert "".join(page.texts).count(EVIL) >= 4
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    styles = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", styles)
    assert "default-src 'none'" in text


def test_a_task_that_does_not_stand_out_says_so(tmp_path):
    text = written(tmp_path, [row(0), row(0, "point")])
    digits, point = text.split('<div class="score">')[1:]
    assert "+60.0 over both baselines" in digits
    assert "+30.0 to the better baseline, within the noise" in point
    assert "blank" not in point.split("</section>")[0]


def test_controls_stand_beside_the_baselines_and_what_they_do_not_bring_down_is_marked(tmp_path):
    task = report()["tasks"]["digits"]
    blind = dict(task, controls={"shuffled": 0.8, "wrong": 0.1})
    answers = "0123456789" * 2
    rows = [
        row(
            i,
            answers=[a],
            prediction=a,
            shuffled_prediction=a,
            shuffled_score=1.0,
            wrong_prediction="?",
            wrong_score=0.0,
        )
        for i, a in enumerate(answers)
    ]
    text = written(tmp_path, rows, report=report(tasks={"digits": blind}))
    (digits,) = text.split('<div class="score">')[1:]
    assert '<span class="above"><i class="key shuffled"></i>shuffled 80.0 ↑</span>' in digits
    assert '<span><i class="key wrong-picture"></i>wrong 10.0</span>' in digits
    assert "<dt>shuffled</dt>" in text
    assert "colours alone of a shuffled picture" in text
    text = written(tmp_path, rows)
    assert '<i class="key wrong-picture">' not in text
    assert "what it scores above that, it sees" in text


def test_a_control_that_says_what_the_words_give_away_is_not_marked(tmp_path):
    """One answer for each kind of question explains it, though no one answer for all questions does."""
    kinds = [("Which day?", "Monday"), ("Which size?", "large"), ("Which colour?", "red")]
    rows = [
        row(9 * i + j, question=f"{question} {j}", answers=[answer], prediction=answer, blank_score=1.0)
        for i, (question, answer) in enumerate(kinds)
        for j in range(9)
    ]
    task = dict(report()["tasks"]["digits"], baselines={"majority": 1 / 3, "blank": 1.0})
    assert "↑" not in written(tmp_path, rows, report=report(tasks={"digits": task}))
    mixed = [dict(r, question="Well?") for r in rows]
    assert "blank 100.0 ↑" in written(tmp_path, mixed, report=report(tasks={"digits": task}))


def test_the_table_for_a_terminal_has_a_column_for_what_was_measured():
    task = report()["tasks"]["digits"]
    lines = table({"a": task, "b": dict(task, baselines={"majority": 0.1, "blank": None}, controls={"wrong": 0.25})})
    assert [line.split() for line in lines] == [
        ["task", "metric", "score", "majority", "blank", "wrong"],
        ["a", "exact_match", "80.0%", "10.0%", "20.0%", "-"],
        ["b", "exact_match", "80.0%", "10.0%", "-", "25.0%"],
    ]
    assert table({}) == []


def test_figures_of_a_stage_are_a_row_of_the_table(tmp_path):
    metrics_lines(tmp_path, {"stage": "teacher", "step": 1, "validation": {"mean": 0.375}})
    stages = {"teacher": {"steps": 30, "seconds": 60.0, "first_loss": 7.0, "last_loss": 0.5, "tiles_seen": 41234.0}}
    page = Page(written(tmp_path, [row(0)], report=report(stages=stages)))
    texts = [text.strip() for text in page.texts if text.strip()]
    start = texts.index("stage")
    assert texts[start : start + 12] == [
        *("stage", "steps", "time", "loss", "validation", "tiles seen"),
        *("teacher", "30", "1 min 0 s", "7 → 0.5", "37.5 %", "41.2 k"),
    ]


def test_a_run_that_measured_nothing_has_a_page(tmp_path):
    page = Page(written(tmp_path, [], report=report(tasks={}, stages={})))
    assert not page.open
    assert ("href", "#scores") not in page.attributes


def test_curves_show_the_last_word_on_each_step_and_count_half_lines(tmp_path):
    lines = [{"stage": "teacher", "step": s, "loss": loss} for s, loss in [(1, 4.0), (2, 9.0), (2, 3.0), (3, 2.0)]]
    metrics_lines(tmp_path, *lines)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "teacher", "step": Infinity}\n{"stage": "teach')
    metrics = charts.read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["loss"] for entry in metrics.stages["teacher"]] == [4.0, 3.0, 2.0]
    assert metrics.unreadable == 2
    drawn = charts.curve("loss", metrics.stages["teacher"], "loss")
    assert drawn.points == "0.0,0.0 500.0,250.0 1000.0,500.0"
    assert (drawn.first, drawn.last, drawn.scale) == ("4", "2", "linear")
    text = written(tmp_path, [row(0)])
    assert "2 unreadable lines of metrics.jsonl left out" in text
    assert text.count("<polyline") == 1  # no learning rate in the lines


def test_curves_of_one_stage_have_one_range_of_steps():
    entries = [{"step": step, "loss": 8.0 / step} for step in range(1, 6)]
    for entry, score in ((entries[1], 0.25), (entries[3], 0.5)):
        entry["validation_mean"] = score
    loss, score = (charts.curve(key, entries, key) for key in ("loss", "validation_mean"))
    assert loss.x_ticks == score.x_ticks == [(0.0, "1"), (100.0, "5")]
    assert [point.split(",")[0] for point in score.points.split()] == ["250.0", "750.0"]
    assert (score.first, score.last) == ("0.25", "0.5")


def test_a_curve_over_orders_of_magnitude_is_logarithmic_and_one_without_numbers_is_not_drawn():
    entries = [{"step": s, "loss": 10.0 ** (2 - s)} for s in range(5)]
    drawn = charts.curve("loss", entries, "loss")
    assert drawn.scale == "log"
    assert drawn.points.split()[2] == "500.0,500.0"
    assert charts.curve("loss", [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}], "loss") is None
    constant = charts.curve("loss", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 3.0}], "loss")
    assert "nan" not in constant.points


def test_a_long_curve_is_averaged_into_bins():
    entries = [{"step": s, "loss": float(s % 2)} for s in range(10_000)]
    curve = charts.curve("loss", entries, "loss")
    points = curve.points.split()
    assert len(points) == charts.MAX_POINTS
    assert (curve.first, curve.last) == ("0", "1")  # as they were, not the means of bins
    assert {point.split(",")[1] for point in points} <= {f"{y:.1f}" for y in np.arange(0, 1000, 0.1)}


def test_the_gallery_is_drawn_by_seed_with_tasks_taking_turns_and_no_eye_on_the_score():
    rows = [row(n, task, score=float(n % 2)) for task in ("digits", "chart", "point") for n in range(40)]
    chosen = gallery.choose(rows, 12, seed=3)
    assert [r["task"] for r in chosen] == ["digits", "chart", "point"] * 4
    assert chosen == gallery.choose(rows, 12, seed=3) != gallery.choose(rows, 12, seed=4)
    assert {r["score"] for r in chosen} == {0.0, 1.0}
    assert len(gallery.choose(rows[:2], 12, seed=0)) == 2


def test_the_picture_has_its_grid_tiles_and_boxes(tmp_path):
    def tiler(image, images):
        assert image.size == (48, 24)
        return np.zeros((3, 4, 4, 3), np.uint8)

    rows = [row(0, "point", prediction="[[900, 900, 400, 99999]]", score=0.0)]
    text = written(tmp_path, rows, tiler=tiler)
    assert re.findall(r'<line class="grid-over" x1="(\S+)"', text) == ["500.0"]
    assert re.findall(r'<rect class="gold" x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', text) == [
        ("0.0", "0.0", "500.0", "500.0")
    ]
    assert '<rect class="said" x="400.0" y="900.0" width="500.0" height="150.0"' in text
    assert text.count('alt="tile ') == 3
    assert text.count('class="thumbnail"') == 1


def test_a_box_in_words_is_drawn_only_where_the_gold_answer_is_a_box(tmp_path):
    assert "<rect" not in written(tmp_path, [row(0, prediction="[[0, 0, 1, 1]]")])


def test_large_pictures_are_shrunk_and_small_ones_stay_sharp(tmp_path):
    text = written(tmp_path, [row(0, width=3000, height=100), row(1)])
    sizes = re.findall(r'class="(crisp|)" src="data:image/(?:png|jpeg);base64,([^"]+)"', text)
    widths = {crisp: Image.open(io.BytesIO(base64.b64decode(data))).size for crisp, data in sizes}
    assert widths == {"": (896, 30), "crisp": (48, 24)}


def test_tiles_of_full_size_are_shrunk_so_that_the_page_stays_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 448, 448, 3), np.uint8)
    text = written(tmp_path, [row(0)], tiler=lambda image, images: noise)
    tiles = re.findall(r'<img src="data:image/(?:png|jpeg);base64,([^"]+)" alt="tile', text)
    assert [Image.open(io.BytesIO(base64.b64decode(data))).size for data in tiles] == [(96, 96)] * 2


def test_text_that_utf8_cannot_hold_is_shown_as_an_escape(tmp_path):
    assert "\\ud800" in written(tmp_path, [row(0, prediction="\ud800")])


def test_wrong_keys_are_a_defect(tmp_path):
    with pytest.raises(ValueError, match="colour"):
        written(tmp_path, [row(0)], report=report(colour=1))
    assert not os.listdir(tmp_path)


def test_a_run_without_its_page_is_not_finished(tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"report\.html: cannot be written: No space left"):
        written(tmp_path, [row(0)])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.03061, "0.0306"), (-0.926, "-0.926"), (4012.3, "4,012"), (4e-5, "4e-5"), (1e6, "1e6")],
)
def test_numbers(value, words):
    assert charts.number(value) == words
