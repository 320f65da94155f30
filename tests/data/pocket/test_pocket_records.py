import collections
import io
import re

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.boxes import format_box
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.pocket import charts, digits, documents, photos, points
from vlm_jax.data.pocket.canvas import canvas_size, pick
from vlm_jax.data.pocket.records import draw_scene, make_record
from vlm_jax.data.pocket.scene import SPLITS, TASKS

LAYOUT = ClosestAspect(tile_size=64, max_tiles=6)

MAJORITY = {"digits": 0.2, "count": 0.2, "document": 0.08, "chart": 0.25, "point": 0.03, "photo": 0.1}
"""No answer of a task may be a larger share of its test questions."""


def answers(record):
    return [turn.text for turn in record.conversation.turns if turn.role == "assistant"]


def scenes(material, task, split="train", count=40):
    for number in range(count):
        yield draw_scene(np.random.default_rng([9, number]), material[split], task, number)[0]


def picture(record):
    return Image.open(io.BytesIO(record.conversation.images[0]))


@pytest.mark.parametrize("key", ["digits", "regions", "content"])
def test_no_raw_material_is_in_two_splits(records, key):
    used = {split: set() for split in SPLITS}
    for (split, _), own in records.items():
        for record in own:
            value = record.provenance.get(key, [])
            used[split].update([value] if isinstance(value, str) else value)
    assert all(used.values())
    assert sum(map(len, used.values())) == len(set.union(*used.values()))


@pytest.mark.parametrize("task", TASKS)
def test_a_record_is_a_function_of_its_number(records, material, task):
    # Drawn after hundreds of others, in another order: nothing is left behind by what was drawn before.
    for number in (7, 3):
        assert make_record(0, "train", task, number, material["train"]) == records["train", task][number]
    assert make_record(1, "train", task, 3, material["train"]) != records["train", task][3]


@pytest.mark.parametrize("task", ["count", "document", "chart", "point"])
def test_what_is_hard_is_asked_more_often_in_training_only(material, task):
    def kinds(split, hard):
        return {make_record(0, split, task, number, material[split], hard).kind for number in (1, 2, 4)}

    assert kinds("test", hard=True) == kinds("test", hard=False)
    assert kinds("train", hard=True) != kinds("train", hard=False)


@pytest.mark.parametrize("task", TASKS)
def test_majority_answer_is_rare(records, task):
    counts = collections.Counter(answers(record)[-1] for record in records["test", task])
    answer, times = counts.most_common(1)[0]
    assert times / counts.total() <= MAJORITY[task], (answer, times)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_records_ask_one_question_balanced_over_kinds(records, split):
    for task in TASKS:
        own = records[split, task]
        assert all([turn.role for turn in r.conversation.turns] == ["user", "assistant"] for r in own)
        assert all(r.conversation.task == task for r in own)
        kinds = collections.Counter(record.kind for record in own)
        expected = {"digits": 1, "count": 3, "document": 3, "chart": 4, "point": 4, "photo": 1}[task]
        assert len(kinds) == expected


def test_everything_is_asked_about_most_training_pictures(records):
    own = [record for (split, _), part in records.items() if split == "train" for record in part]
    independent = [record for record in own if record.conversation.independent]
    assert 0.8 < len(independent) / len(own) < 0.97
    prompts = "Read everything|List everything|Describe"
    for record in independent:
        texts = [turn.text for turn in record.conversation.turns if turn.role == "user"]
        assert sum(bool(re.search(prompts, text)) for text in texts) == (0 if len(boxes_of(record)) > 1 else 1)
    assert np.mean([len(answers(record)) for record in independent]) > 4
    dialogues = collections.Counter(len(answers(record)) for record in own if not record.conversation.independent)
    assert set(dialogues) <= {1, 2, 3, 4, 5}
    assert len(dialogues) > 2
    for record in own:
        texts = [turn.text for turn in record.conversation.turns]
        assert texts[0].startswith("<image>\n")
        assert "".join(texts).count("<image>") == 1


def boxes_of(record):
    """The things whose boxes are asked for."""
    return {answer.split("</ref>")[0] for answer in answers(record) if "\n" not in answer and "<box>" in answer}


def test_reading_is_the_transcription_of_nine_digits(material):
    for number in range(10):
        record = make_record(0, "train", "reading", number, material["train"])
        user, assistant = record.conversation.turns
        assert user.text == "<image>\nRead everything."
        assert re.fullmatch(r"\d{3}\n\d{3}\n\d{3}", assistant.text)


def test_looking_asks_all_other_tasks_in_one_tile(material):
    kinds = collections.Counter()
    for number in range(60):
        record = make_record(0, "train", "looking", number, material["train"])
        assert LAYOUT.grid(*picture(record).size) == (1, 1)
        assert record.conversation.independent
        kinds[record.kind] += 1
    modules = (digits.COUNT_KINDS, documents.KINDS, charts.KINDS, points.KINDS, photos.KINDS)
    assert set(kinds) == {kind for own in modules for kind in own}


def test_empty_places_are_empty(material):
    own = material["train"]
    picks = np.array([[digits.EMPTY, 5], [7, digits.EMPTY]])
    image = np.asarray(digits.draw_grid(np.random.default_rng(0), own, picks, (1, 1)).convert("L"), float)
    height, width = (side // 2 for side in image.shape)
    middles = [image[top : top + height // 2, left : left + width // 2]
               for top in (height // 4, height + height // 4) for left in (width // 4, width + width // 4)]  # fmt: skip
    empty, first, second, also_empty = map(np.ptp, middles)
    assert max(empty, also_empty) < 30 < 100 < min(first, second)


def test_finding_asks_for_cells_and_lines_of_nine_digits(material):
    for number in range(10):
        conversation = make_record(0, "train", "finding", number, material["train"]).conversation
        questions = [turn.text.removeprefix("<image>\n") for turn in conversation.turns if turn.role == "user"]
        starts = collections.Counter(" ".join(question.split()[:2]) for question in questions)
        assert starts == {"Which digit": 4, "Read row": 1, "Read column": 1, "Read everything.": 1}
        assert conversation.independent


def searched(question, grid):
    """The kind of a question of `searching`, and its answer as the grid's digits have it."""
    numbers = [int(found) for found in re.findall(r"\d+", question)]
    rows = [row.count(numbers[-1]) for row in grid] if numbers else []
    if question.startswith("What is the sum"):
        return "sum", str(sum(grid[numbers[0] - 1][column - 1] for column in numbers[1:]))
    if question.startswith("Which"):
        return "cell", str(grid[numbers[0] - 1][numbers[1] - 1])
    if question.startswith("Is"):
        return "is", "yes" if grid[numbers[0] - 1][numbers[1] - 1] == numbers[2] else "no"
    if question.startswith("In"):
        assert rows[numbers[0] - 1] == 1
        return "which", str(grid[numbers[0] - 1].index(numbers[1]) + 1)
    assert question == f"Where is the digit {numbers[0]}?"
    assert sum(rows) == 1
    row = rows.index(1)
    return "where", f"row {row + 1}, column {grid[row].index(numbers[0]) + 1}"


def test_searching_asks_where_digits_are_and_adds_neighbours_up(material):
    kinds = collections.Counter()
    for number in range(20):
        conversation = make_record(0, "train", "searching", number, material["train"]).conversation
        *texts, last, read = [turn.text.removeprefix("<image>\n") for turn in conversation.turns]
        assert last == "Read everything."
        grid = [[int(digit) for digit in line] for line in read.splitlines()]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            kind, right = searched(question, grid)
            assert answer == right, question
            kinds[kind] += 1
    assert kinds["sum"] == 40
    assert kinds["cell"] == kinds["is"] == kinds["which"] == 20
    assert kinds["where"] > 10


def test_ids_are_unique(records):
    ids = [record.conversation.id for own in records.values() for record in own]
    assert len(set(ids)) == len(ids)


def test_pictures_are_rgb_png_of_many_grids_and_mostly_one_tile(records):
    grids = collections.Counter()
    for (split, _), own in records.items():
        for record in own:
            image = picture(record)
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert min(image.size) >= 44
            assert max(image.size) <= 240
            if split == "train":
                grids[LAYOUT.grid(*image.size)] += 1
    assert 0.6 < grids[1, 1] / grids.total() < 0.8
    assert set(grids) >= {(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)}


def test_canvas_sizes_give_the_grid_they_are_for():
    rng = np.random.default_rng(0)
    wanted = {grid for module in (documents, charts, photos, points) for grid in module.LAYOUTS}
    wanted |= {key[2] for layouts in (digits.LAYOUTS, digits.COUNT_LAYOUTS) for key in layouts}
    for grid in sorted(wanted):
        for _ in range(300):
            size = canvas_size(rng, grid)
            assert LAYOUT.grid(*size) == grid, size


def test_digit_answers_follow_from_the_transcription(material):
    for task in ("digits", "count"):
        for scene in scenes(material, task):
            rows = scene.transcription.answer.split("\n")
            for question in scene.questions:
                assert question.answer == expected_digits(question, rows), question


def expected_digits(question, rows):
    """The answer to a question about a grid whose rows are strings of digits."""
    if question.kind == "number":
        return str(len("".join(rows)))
    numbers = [int(number) for number in re.findall(r"\d+", question.text)]
    if question.kind == "count":
        return str("".join(rows).count(str(numbers[0])))
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    if question.kind == "cell":
        return rows[numbers[0] - 1][numbers[1] - 1]
    line = (columns if "column" in question.text else rows)[numbers[0] - 1]
    return str(sum(map(int, line))) if question.kind == "sum" else line


def test_the_transcription_names_the_digits_drawn(material):
    own = material["train"]
    for scene in scenes(material, "digits"):
        drawn = {int(own.labels[own.indices == index][0]) for index in scene.provenance["digits"]}
        assert drawn == {int(digit) for digit in scene.transcription.answer.replace("\n", "")}


def test_counts_asked_for_are_spread_evenly(records):
    asked = [answers(record)[0] for record in records["test", "count"] if record.kind == "count"]
    shares = np.asarray([asked.count(str(n)) for n in range(5)]) / len(asked)
    assert set(asked) == set("01234")
    assert shares.max() < 0.4
    assert shares.min() > 0.05


def test_numbers_asked_for_run_from_one_to_nine(records):
    asked = collections.Counter(answers(record)[0] for record in records["test", "count"] if record.kind == "number")
    assert set(asked) <= set("123456789")
    assert len(asked) >= 6
    assert max(asked.values()) < 0.45 * asked.total()


def test_most_charts_are_series_and_printed_forms_keep_their_lines(material):
    firsts = [scene.transcription.answer.split(":")[0] for scene in scenes(material, "chart", count=80)]
    assert 0.7 < firsts.count("A") / len(firsts) < 0.97
    forms = [scene for scene in scenes(material, "document", count=120) if scene.questions[0].kind == "field"]
    labels = [tuple(line.split()[0] for line in form.transcription.answer.split("\n")) for form in forms]
    printed = [lines for lines in labels if lines in documents.TEMPLATES]
    assert set(printed) == set(documents.TEMPLATES)
    assert 0.5 < len(printed) / len(labels) < 0.95


def test_documents_add_up_and_answer_as_printed(material):
    for scene in scenes(material, "document", count=60):
        lines = [line.split(" ", 1) for line in scene.transcription.answer.split("\n") if " " in line]
        printed = {label.lower(): value for label, value in lines}
        prices = [int(value) for label, value in lines if label not in ("Total",)] if "total" in printed else []
        if prices:
            assert int(printed["total"]) == sum(prices)
        for question in scene.questions:
            named = re.fullmatch(r"What is the (?:price of )?(\w+)\?", question.text).group(1)
            assert question.answer == printed[named.lower()]


def test_chart_answers_follow_from_the_transcription(material):
    replies = collections.Counter()
    for scene in scenes(material, "chart", count=80):
        values = {label: int(value) for label, value in re.findall(r"(\w+): (\d+)", scene.transcription.answer)}
        assert 2 <= len(values) <= 4
        for question in scene.questions:
            if question.kind == "compare":
                first, second = re.fullmatch(r"Is (\w+) higher than (\w+)\?", question.text).groups()
                assert question.answer == ("yes" if values[first] > values[second] else "no")
                replies[question.answer] += 1
            elif question.kind == "value":
                assert values[re.search(r"of (\w+)\?", question.text).group(1)] == int(question.answer)
            else:
                extreme = max if question.kind == "highest" else min
                assert question.answer == extreme(values, key=values.get)
    assert 0.3 < replies["yes"] / replies.total() < 0.7


def test_bars_are_drawn_in_proportion_and_boxed_where_they_are(material):
    rng = np.random.default_rng(3)
    for _ in range(12):
        chart, image, boxes = charts.make_chart(rng, material["train"])
        pixels = np.asarray(image, int)
        heights = [box[3] - box[1] for box in boxes.values()]
        np.testing.assert_allclose(
            np.asarray(heights) / heights[0], np.asarray(chart.values) / chart.values[0], rtol=1e-6
        )
        paper = np.median(pixels.reshape(-1, 3), axis=0)
        for left, top, right, bottom in boxes.values():
            if bottom - top > 6:
                inside = pixels[int(top) + 3 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
                color = np.median(inside.reshape(-1, 3), axis=0)
                assert np.abs(inside - color).max() < 3  # one colour, nothing else
                assert np.abs(color - paper).max() > 30


def test_things_are_where_their_boxes_say(material):
    checked = 0
    for number in range(60):
        rng = np.random.default_rng([4, number])
        grid = pick(rng, points.LAYOUTS)
        image, boxes, _ = points._draw_things(rng, material["train"], grid, only_digits=bool(number % 2))
        free = np.ones((image.height, image.width), bool)
        for left, top, right, bottom in boxes.values():
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height
            assert right - left >= 3
            assert bottom - top >= 3
            free[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = False
        pixels = np.asarray(image, int)
        paper = np.median(pixels[free], axis=0)
        assert np.abs(pixels[free] - paper).max() <= 30  # the faint shade of the sheet, no ink
        for box in boxes.values():
            inside = pixels[box[1] : box[3], box[0] : box[2]]
            ink = np.abs(inside - paper).max(axis=2) > 30
            checked += 1
            # Ink touches all four sides of the box, give or take a soft edge.
            assert all(edge.any() for edge in (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:])), box
    assert checked > 100


def test_point_answers_are_boxes_of_the_listing(material):
    pattern = r"<ref>([^<]+)</ref><box>\[\[(\d+), (\d+), (\d+), (\d+)\]\]</box>"
    for scene in scenes(material, "point"):
        listed = {name: numbers for name, *numbers in re.findall(pattern, scene.transcription.answer)}
        assert len(listed) == len(scene.transcription.answer.split("\n"))
        for question in scene.questions:
            if question.kind == "what":
                assert f"[[{', '.join(listed[question.answer])}]]" in question.text
            else:
                ((name, *numbers),) = re.findall(pattern, question.answer)
                assert listed[name] == numbers
                assert f"<ref>{name}</ref>" in question.text
                x1, y1, x2, y2 = map(int, numbers)
                assert 0 <= x1 < x2 <= 1000
                assert 0 <= y1 < y2 <= 1000


def test_no_one_box_answers_many_questions(records):
    """The best fixed box among the gold ones overlaps few others by half (the metric's threshold)."""
    boxes = np.asarray(
        [[int(n) for n in re.findall(r"\d+", answers(r)[0].split("<box>")[1])] for r in records["test", "point"]], float
    )
    corners = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(corners[1] - corners[0], 0, None).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = shared / (area[:, None] + area[None] - shared)
    assert (overlap >= 0.5).mean(axis=1).max() < 0.2


def test_boxes_are_rounded_to_thousandths_of_the_original_size():
    assert format_box((1, 2.5, 64, 50), (64, 100)) == "<box>[[16, 25, 1000, 500]]</box>"


def test_crops_are_named_after_their_photograph(records):
    names = collections.Counter()
    for record in records["test", "photo"]:
        (region,) = record.provenance["regions"]
        assert region.split("/")[0] == answers(record)[0]
        names[answers(record)[0]] += 1
    assert len(names) == 15
    assert max(names.values()) - min(names.values()) <= 1


def test_held_out_crops_are_the_photographs_own_pixels(material):
    """Enlarged, but neither mirrored nor brightened: the crop of a whole region at its own size is the region."""
    region = material["test"].regions["temple"][0]
    height, width = region.pixels.shape[:2]

    class Widest:
        """A generator whose crop is as large as possible."""

        def uniform(self, low, high):
            return high

        def integers(self, bound):
            return 0

    crop = photos.crop_region(Widest(), region, (width, height), jitter=False)
    np.testing.assert_array_equal(np.asarray(crop), region.pixels)


def test_text_is_legible_after_tiling(material):
    """A capital letter is at least eight pixels high in the tiles that the model sees."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        _, image, boxes = documents.make_document(rng, material["test"], "receipt")
        columns, rows = LAYOUT.grid(*image.size)
        seen = image.resize((64 * columns, 64 * rows), Image.Resampling.BICUBIC)
        left, top, right, bottom = boxes["Total"]
        scale = 64 * rows / image.height, 64 * columns / image.width
        # The letters of "Total" alone: the left two fifths of the line, without the rule above it.
        line = seen.crop(
            (left * scale[1], (top + 2) * scale[0], (left + 0.4 * (right - left)) * scale[1], bottom * scale[0])
        )
        pixels = np.asarray(line.convert("L"), float)
        paper = np.median(pixels)
        ink = np.abs(pixels - paper) > 0.35 * np.abs(pixels - paper).max()
        assert np.flatnonzero(ink.any(axis=1)).size >= 7
