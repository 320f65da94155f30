"""The trained model that lies in `examples/pocket`: what its page says, and that it sees."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import vlm_jax
from vlm_jax.data.images import decode_image
from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.records import make_record
from vlm_jax.evaluation.benchmarks import pocket
from vlm_jax.evaluation.runner import evaluate

FOLDER = Path(__file__).parents[1] / "examples" / "pocket"
TASKS = ("digits", "count", "document", "chart", "point", "photo")


@pytest.fixture(scope="module")
def model():
    return vlm_jax.load(FOLDER)


@pytest.fixture(scope="module")
def report():
    return json.loads((FOLDER / "report.json").read_text())


def test_its_page_gives_the_figures_of_its_report(report):
    page = (FOLDER / "README.md").read_text()
    for name, task in report["tasks"].items():
        assert f"| `{name}` |" in page
        assert f" {100 * task['value']:.1f} % |" in page
    assert re.search(r"\| commit \| `[0-9a-f]{40}` \|", page)
    assert set(report["tasks"]) == set(TASKS)


def test_every_task_is_far_over_what_can_be_had_without_looking(report):
    for name, task in report["tasks"].items():
        low, _ = task["interval"]
        others = {**task["baselines"], **task["controls"]}
        assert low > max(others.values()) + 0.1, name


@pytest.mark.slow
def test_it_answers_new_questions_about_as_well_as_its_report_says(model, report):
    """Pictures that no data set holds, drawn of the test split's material by another seed."""
    material, count = load_material(0)["test"], 20
    records = [make_record(4321, "test", task, number, material) for task in TASKS for number in range(count)]
    benchmark = pocket([record.conversation for record in records])
    result = evaluate(lambda questions: model.answer(questions, 40), benchmark, controls=())
    for task in TASKS:
        expected = report["tasks"][task]["value"]
        spread = 3 * np.sqrt(max(expected * (1 - expected), 0.02) / result.tasks[task].n)
        assert result.tasks[task].value > expected - spread, task


def test_it_knows_a_photograph_of_its_training(model):
    (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations
    assert (
        model.generate("Which photograph does this crop come from?", [Path(folder) / "datasets/images/china.jpg"])
        == "temple"
    )


@pytest.mark.torch
def test_transformers_answers_alike(model):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    record = make_record(77, "test", "document", 3, load_material(0)["test"]).conversation
    question = record.turns[0].text.replace("<image>", "").strip()
    ours = model.generate(question, [record.images[0]])
    processor = AutoProcessor.from_pretrained(FOLDER)
    theirs = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    content = [{"type": "image", "image": decode_image(record.images[0], "x")}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    out = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)
    said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.strip() == ours
