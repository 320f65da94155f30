"""Folders that we write, in `AutoProcessor` and `AutoModelForImageTextToText`, and folders that these write, here.

Runs with any `transformers` from 4.52 on. The joint processor needs torchvision (see `tests/torchvision_stub.py`).
"""

import dataclasses
import functools
import io
import json

import numpy as np
import pytest
import tokenizers
from PIL import Image

from tests import tiny
from tests.convert.references import has_torchvision
from vlm_jax import globs
from vlm_jax.convert.folders import read_folder, write_folder
from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.text.render import frame_marks
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model
from vlm_jax.models.vlm import VLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

PICTURES = [tiny.png(64, 32, 1), tiny.png(30, 31, 2), tiny.png(70, 68, 3)]  # 3, 1 and 5 tiles


@functools.cache
def tokenizer() -> Tokenizer:
    """The tests' tokenizer with the control tokens of every prompt format."""
    backend = tokenizers.Tokenizer.from_str(tiny.tokenizer().to_json())
    for token in ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        backend.add_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
    return Tokenizer(backend, {"bos_token": "<s>", "pad_token": "<|endoftext|>"})


# InternVL's processor writes <img> and </img> around every image.
@pytest.fixture(scope="module", params=[name for name, template in TEMPLATES.items() if template.image_start])
def folder(request, tmp_path_factory):
    """A folder of each prompt format, with a system message of its own."""
    system = dataclasses.replace(tiny.system(), template=request.param, system_prompt="It's the total.")
    path = tmp_path_factory.mktemp("processor") / "model"
    write_folder(path, tiny.params(), system, tokenizer())
    return path


def ours_of(folder) -> Model:
    params, system, words = read_folder(folder)
    return Model(system, params, words)


def slow_images(folder):
    """The image processor that works with Pillow, as each version wants to be asked for it."""
    try:
        from transformers.models.got_ocr2 import image_processing_pil_got_ocr2  # noqa: F401
    except ImportError:
        return transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def conversations(form):
    """Several turns and images; no image, and a system message. As our turns, or as messages of `transformers`."""
    opened = [Image.open(io.BytesIO(data)) for data in PICTURES]
    image = [{"type": "image", "image": picture} for picture in opened]
    text = "Which is brighter, 1 or 2?"
    if form == "ours":
        first = (
            Turn("user", f"{IMAGE}\n{IMAGE}\n{text}"),
            Turn("assistant", "2"),
            Turn("user", f"{IMAGE}\n And which is it?"),
        )
        return [
            Conversation(first, tuple(PICTURES), "images"),
            Conversation((Turn("system", "Be brief."), Turn("user", "What is it?")), (), "text"),
        ]

    def said(role, *parts):
        return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}

    return [
        [said("user", *image[:2], text), said("assistant", "2"), said("user", image[2], " And which is it?")],
        [said("system", "Be brief."), said("user", "What is it?")],
    ]


def test_tokenizer_alone_renders_and_tokenises(folder):
    """Contents as plain strings, and the template's own system message."""
    ours = ours_of(folder)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    turns = (Turn("user", "What is it?"), Turn("assistant", "It's 2"), Turn("user", "Which?"))
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    batch = ours.batch([Conversation(turns)])
    assert ids == batch.tokens[0].tolist()
    assert "It's the total." in reference.decode(ids)
    closed = reference.apply_chat_template(messages[:2], return_dict=True)["input_ids"]
    assert closed == ours.batch([Conversation(turns[:2])]).tokens[0].tolist()


def test_pixels_of_the_slow_processor_are_ours(folder):
    ours, images = ours_of(folder), slow_images(folder)
    for data in PICTURES:
        picture = Image.open(io.BytesIO(data))
        batch = ours.batch([Conversation((Turn("user", "x"),), (data,))])
        theirs = images(images=[picture], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(tiny.torch_inputs(batch)["pixel_values"].numpy(), theirs, atol=1e-6)


@has_torchvision
def test_prompts_and_pixels(folder):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "InternVLProcessor"
    slow, ours = slow_images(folder), ours_of(folder)
    for conversation, messages in zip(conversations("ours"), conversations("theirs"), strict=True):
        for images in (processor.image_processor, slow):
            processor.image_processor = images
            check_inputs(inputs_of(processor, messages), batch_of(ours, conversation), exact=images is slow)


def batch_of(ours, conversation):
    """Of several images each takes all tiles in `transformers`, while ours share them, as InternVL's trainer does."""
    return ours.batch([conversation], max_tiles=4 * max(1, len(conversation.images)))


def inputs_of(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def check_inputs(inputs, batch, exact):
    assert set(inputs) <= {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["input_ids"].tolist() == batch.tokens.tolist()
    if batch.tile_segment.any():
        pixels = tiny.torch_inputs(batch)["pixel_values"].numpy()
        assert len(pixels) == 9
        two_levels = 2 / 255 / 0.224  # the fast processor's bicubic filter rounds otherwise
        np.testing.assert_allclose(inputs["pixel_values"].numpy(), pixels, atol=1e-6 if exact else two_levels)


@has_torchvision
def test_answers(tmp_path):
    write_folder(tmp_path / "m", tiny.params(), tiny.system(), tiny.tokenizer())
    model = transformers.AutoModelForImageTextToText
    reference, info = model.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "m")
    processor.image_processor = slow_images(tmp_path / "m")
    ours = ours_of(tmp_path / "m")
    stop = ours.tokenizer.token_id("<|im_end|>")
    assert reference.generation_config.eos_token_id == stop
    for conversation, messages in zip(conversations("ours"), conversations("theirs"), strict=True):
        batch = batch_of(ours, conversation)
        with torch.no_grad():
            written = reference.eval().generate(**inputs_of(processor, messages), max_new_tokens=24, do_sample=False)
        expected = written[0, batch.tokens.shape[1] :].tolist()
        answer = generate(VLM(ours.system.model, ours.compute), ours.params, batch, np.full(1, 24), stop)[0]
        assert len(answer) > 4
        assert answer == (expected[:-1] if expected[-1] == stop else expected)


@has_torchvision
def test_video_frames(folder):
    """A video's frames are one tile each, under the labels of inference."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ours = ours_of(folder)
    frames = [tiny.png(48, 32, seed) for seed in range(3)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames])
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], videos=[pixels], add_special_tokens=False, return_tensors="pt")
    question = f"{frame_marks(3)}\nWhich?"
    batch = ours.batch([Conversation((Turn("user", question),), tuple(frames))], max_tiles=1)
    assert inputs["input_ids"].tolist() == batch.tokens.tolist()
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    ours_pixels = tiny.torch_inputs(batch)["pixel_values"].numpy()
    np.testing.assert_allclose(inputs["pixel_values"].numpy(), ours_pixels, atol=2 / 255 / 0.224)


@has_torchvision
def test_folders_saved_by_transformers_are_read(folder, tmp_path):
    """Image settings stand in a file of their own up to 4.57 and inside `processor_config.json` from 5.0 on."""
    transformers.AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path)
    params, system, words = read_folder(tmp_path)
    assert system == read_folder(folder)[1]
    assert words.encode("What is it? <box>") == tokenizer().encode("What is it? <box>")
    flat, wanted = globs.flatten(params), globs.flatten(tiny.params())
    assert all((flat[path] == wanted[path]).all() for path in wanted)


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@pytest.fixture
def copy(tmp_path):
    write_folder(tmp_path / "m", tiny.params(), tiny.system(), tiny.tokenizer())
    return tmp_path / "m"


def test_settings_nested_or_flat(copy):
    flat = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    edit(copy / "processor_config.json", image_processor={**flat, "max_patches": 7})
    assert read_folder(copy)[1].layout.max_tiles == 7
    (copy / "preprocessor_config.json").write_text(json.dumps({**flat, "max_patches": 9}))
    assert read_folder(copy)[1].layout.max_tiles == 7  # `transformers` asks the nested ones first too
    (copy / "processor_config.json").unlink()
    assert read_folder(copy)[1].layout.max_tiles == 9
    edit(copy / "preprocessor_config.json", crop_to_patches=False)  # as released; the joint processor overrides it
    assert read_folder(copy)[1].layout.max_tiles == 9
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"neither in preprocessor_config\.json nor in processor_config\.json"):
        read_folder(copy)


def test_settings_that_we_would_not_follow_are_told_at_once(copy):
    edit(
        copy / "preprocessor_config.json",
        size={"height": 28, "width": 32}, resample=2, do_rescale=False, do_center_crop=True,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        read_folder(copy)
    for part in (
        "settings of the image processor (preprocessor_config.json or processor_config.json): ",
        "size must be {'height': 32, 'width': 32}, is {'height': 28, 'width': 32}",
        "resample must be 3, is 2",
        "do_rescale must be True, is False",
        "do_center_crop must be False, is True",
    ):
        assert part in str(error.value)


def test_pixel_statistics_come_from_the_settings(copy):
    edit(copy / "preprocessor_config.json", image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2])
    vision = read_folder(copy)[1].model.vision
    assert (vision.mean, vision.std) == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    params, system, words = read_folder(copy)
    write_folder(copy.with_name("again"), params, system, words)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert json.loads((copy.with_name("again") / name).read_text())["image_std"] == [0.5, 0.25, 0.2]


def test_the_original_layout_needs_no_settings(tmp_path):
    write_folder(tmp_path / "m", tiny.params(), tiny.system(), tiny.tokenizer(), layout="internvl")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    assert read_folder(tmp_path / "m")[1] == tiny.system()
