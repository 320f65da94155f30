"""LLaVA-NeXT against `LlavaNextForConditionalGeneration` and its own processor, at sizes of all kinds."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.convert.llava_models import (
    GRIDS,
    IMAGES,
    assert_same_weights,
    conversations,
    difference,
    model,
    tokenizer,
    torch_inputs,
)
from tests.convert.references import has_torchvision
from vlm_jax import globs
from vlm_jax.convert.__main__ import main
from vlm_jax.convert.folders import read_folder, why_not, write_folder
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.errors import UserError
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model, load
from vlm_jax.models.vlm import VLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


# Those of the table in specs 0.5, by the same factor as the tower, and what is odd.
SIZES = [(28, 28), (53, 40), (40, 53), (85, 64), (67, 17), (17, 133), (160, 90), (207, 292), (320, 133), (8, 7),
         (333, 517), (1000, 1), (1, 300), (1, 1)]  # fmt: skip


@pytest.fixture(scope="module")
def next_model(tmp_path_factory):
    """The reference, its folder in full, and ours of that folder."""
    words = tokenizer("mistral_instruct")
    text = {"model_type": "mistral", "sliding_window": None}
    reference = model("LlavaNext", words, {"model_type": "clip_vision_model"}, text, image_grid_pinpoints=GRIDS)
    folder = tmp_path_factory.mktemp("next")
    reference.save_pretrained(folder)
    words.save(folder)
    kind = getattr(transformers, "LlavaNextImageProcessorPil", None) or transformers.LlavaNextImageProcessor
    kind(image_grid_pinpoints=GRIDS, **IMAGES).save_pretrained(folder)
    params, system, tokens = read_folder(folder)
    return reference, folder, Model(system, params, tokens)


def asked(*sizes: tuple[int, int]) -> Conversation:
    pictures = tuple(tiny.png(*size, seed) for seed, size in enumerate(sizes))
    return Conversation((Turn("user", "<image>\nWhat is it? " + "1 <image>" * (len(sizes) - 1)),), pictures, "asked")


def test_what_the_folder_says(next_model):
    _, _, ours = next_model
    assert ours.system.layout == AnyRes(tile_size=28)
    assert ours.system.template == "mistral_instruct"
    assert ours.system.model.vectors == ("newline",)
    newline = np.asarray(ours.params["connector"]["newline"])
    np.testing.assert_array_equal(newline, next_model[0].model.image_newline.detach().numpy())


def test_logits(next_model):
    reference, _, ours = next_model
    assert difference(ours, reference, conversations(), sizes=True) <= 1e-4


def test_logits_at_all_sizes(next_model):
    reference, _, ours = next_model
    prompts = [asked(*SIZES[i : i + 3]) for i in range(0, len(SIZES), 3)]
    assert difference(ours, reference, prompts, sizes=True) <= 1e-4


def test_answers(next_model):
    reference, _, ours = next_model
    for prompt in conversations():
        batch, inputs = ours.batch([prompt]), torch_inputs(ours, [prompt], sizes=bool(prompt.images))
        with torch.no_grad():
            written = reference.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
        expected = written[0, batch.tokens.shape[1] :].tolist()
        assert generate(VLM(ours.system.model, ours.compute), ours.params, batch, np.full(1, 12), -1)[0] == expected


def slow_images(folder):
    if not hasattr(transformers, "LlavaNextImageProcessorPil"):
        return transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


@has_torchvision
def test_its_own_processor(next_model, tmp_path):
    """Of the folder that we write: the same ids and the same pixels at every size."""
    _, _, ours = next_model
    write_folder(tmp_path / "x", ours.params, ours.system, ours.tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "x")
    assert type(processor).__name__ == "LlavaNextProcessor"
    processor.image_processor = slow_images(tmp_path / "x")
    for size in SIZES:
        prompt = asked(size)
        inputs = torch_inputs(ours, [prompt], sizes=True)
        image = Image.open(io.BytesIO(prompt.images[0]))
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
        theirs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        assert theirs["input_ids"].tolist() == inputs["input_ids"].tolist(), size
        assert theirs["image_sizes"].tolist() == inputs["image_sizes"].tolist()
        np.testing.assert_allclose(theirs["pixel_values"][0].numpy(), inputs["pixel_values"].numpy(), atol=1e-5)


def test_folders_go_both_ways(next_model, tmp_path, capsys):
    """Through the command: theirs, a workdir of ours, a folder, theirs again."""
    reference, folder, ours = next_model
    main([f"--source={folder}", f"--target={tmp_path / 'ours'}", "--layout=orbax"])
    main([f"--source={tmp_path / 'ours'}", f"--target={tmp_path / 'again'}", "--layout=hf", "--verify"])
    assert "verified: max |difference| of logits" in capsys.readouterr().out
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert_same_weights(again, reference)
    params, system, _ = read_folder(tmp_path / "again")
    assert system == ours.system
    found, wanted = globs.flatten(params), globs.flatten(read_folder(folder).params)
    assert found.keys() == wanted.keys()
    assert all((found[path] == wanted[path]).all() for path in wanted)
    assert isinstance(load(tmp_path / "again").generate("What?", [tiny.png(50, 30, 1)], 3), str)
    config = json.loads((tmp_path / "again/config.json").read_text())
    (tmp_path / "again/config.json").write_text(json.dumps({**config, "image_grid_pinpoints": [[28, 56], [30, 28]]}))
    with pytest.raises(UserError, match=r"image_grid_pinpoints must be \[\[28, 56\], \[30, 28\]\], is"):
        read_folder(tmp_path / "again")


def test_what_it_has_no_counterpart_for(next_model):
    system = next_model[2].system
    for change in ({"unpad": False}, {"grids": ()}):
        other = dataclasses.replace(system, layout=dataclasses.replace(system.layout, **change))
        assert f"layout.{next(iter(change))} must" in why_not(other)
    assert why_not(system) is None
