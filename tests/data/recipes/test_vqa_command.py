"""The recipe `vqa` as a command: what it writes is data that a run reads."""

import json

import pytest
from PIL import Image

from vlm_jax.data.formats.open import open_data
from vlm_jax.data.recipes.__main__ import main
from vlm_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in (7, 9):
        Image.new("RGB", (8, 6)).save(tmp_path / "pictures" / f"{number}.png")
    asked = [(1, 7, "What is it?", "cat"), (2, 9, "Where?", "home"), (3, 7, "How many?", "2")]
    questions = [{"question_id": q, "image_id": image, "question": text} for q, image, text, _ in asked]
    answers = [{"question_id": q, "multiple_choice_answer": answer} for q, _, _, answer in asked]
    captions = {
        "images": [{"id": 7, "file_name": "7.png"}],
        "annotations": [{"image_id": 7, "caption": "A cat\n sits."}, {"image_id": 7, "caption": "A cat."}],
    }
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    (tmp_path / "c.json").write_text(json.dumps(captions))
    return tmp_path


VQA = ["vqa", "--questions=q.json", "--annotations=a.json", "--images=pictures", "--image-name={}.png"]


def texts(source):
    return [[turn.text for turn in source[number].turns] for number in range(len(source))]


def test_questions_about_a_picture_become_one_conversation(folder, capsys):
    assert main([*VQA, "--out=vqa.json"]) == 0
    assert "2 conversations, 3 questions" in capsys.readouterr().out
    form = "\nAnswer the question using a single word or phrase."
    assert texts(open_data("vqa.json")) == [
        [f"<image>\nWhat is it?{form}", "cat", "How many?", "2"],
        [f"<image>\nWhere?{form}", "home"],
    ]
    with pytest.raises(UserError, match="already exists"):
        main([*VQA, "--out=vqa.json"])
    assert main([*VQA, "--out=vqa.json", "--overwrite", "--max-turns=1"]) == 0
    assert len(open_data("vqa.json")) == 3


def test_captions_become_records_without_a_question(folder):
    assert main(["vqa", "--captions=c.json", "--images=pictures", "--out=captions.json"]) == 0
    assert texts(open_data("captions.json")) == [["<image>", "A cat sits."], ["<image>", "A cat."]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["vqa", "--questions=q.json", "--images=pictures", "--out=x.json"], "give --questions and --annotations, or"),
        ([*VQA, "--captions=c.json", "--out=x.json"], "give --questions and --annotations, or"),
        ([*VQA[:-1], "--image-name={a}.png", "--out=x.json"], "--image-name"),
        ([*VQA[:-1], "--image-name={.a}.png", "--out=x.json"], "--image-name"),
        ([*VQA[:-1], "--image-name={[0]}.png", "--out=x.json"], "--image-name"),
        ([*VQA[:-1], "--image-name=one.png", "--out=x.json"], "--image-name: one.png: no place for a picture's number"),
        ([*VQA, "--images=nowhere", "--out=x.json"], "--images: nowhere: there is no such folder"),
        ([*VQA[:1], "--questions=a.json", *VQA[2:], "--out=x.json"], "questions: must be a list"),
    ],
)
def test_what_cannot_be_is_one_line(folder, flags, message):
    with pytest.raises(UserError, match=message):
        main(flags)
    assert not (folder / "x.json").exists()
