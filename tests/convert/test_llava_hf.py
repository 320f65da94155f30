"""LLaVA against `LlavaForConditionalGeneration`: folders both ways, logits, answers, and what its relatives change."""

import dataclasses
import importlib.util
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.convert.llava_models import (
    IMAGES,
    SIDE,
    SQUARE,
    assert_same_weights,
    conversations,
    difference,
    model,
    tokenizer,
    torch_inputs,
)
from tests.convert.references import has_torchvision
from vlm_jax import globs
from vlm_jax.config import build, to_plain
from vlm_jax.convert.folders import open_folder, read_folder, read_system, why_not, write_folder
from vlm_jax.convert.lazy import materialise
from vlm_jax.convert.llava_hf import rename
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.single import Single
from vlm_jax.errors import UserError
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model
from vlm_jax.models.connector import MLPConfig
from vlm_jax.models.sizes import DECODERS
from vlm_jax.models.vision_transformer import CLIP_MEAN
from vlm_jax.models.vlm import VLM
from vlm_jax.system import System

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


CLIP, SIGLIP = {"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model"}
DINOV2 = {"model_type": "dinov2", "mlp_ratio": 2}
FULL = {"vision_feature_select_strategy": "full"}
LLAMA = {"model_type": "llama"}
WIDE = {"hidden_size": 64, "num_attention_heads": 2}
KINDS = {
    # template, tower, text, the rest of the config
    "LLaVA-1.5": ("vicuna_v1", CLIP, LLAMA, {}),
    "last layer, no bias, mistral": (
        "mistral_instruct",
        CLIP,
        {"model_type": "mistral", "sliding_window": 20},
        {"vision_feature_layer": -1, "multimodal_projector_bias": False},
    ),
    "TinyLLaVA, phi": ("phi", SIGLIP, {**WIDE, "model_type": "phi", "partial_rotary_factor": 0.4}, FULL),
    "TinyLLaVA, stablelm": ("phi", SIGLIP, {**WIDE, "model_type": "stablelm", "use_qkv_bias": True}, FULL),
    "TinyLLaVA, tinyllama": ("vicuna_v1", SIGLIP, {**LLAMA, "num_key_value_heads": 1}, FULL),
    "TinyLLaVA, gemma": (
        "gemma",
        {**SIGLIP, "vision_use_head": False},
        {"model_type": "gemma", "head_dim": 12, "num_key_value_heads": 1},
        {**FULL, "tie_word_embeddings": True, "vision_feature_layer": -1},
    ),
    "DINOv2, qwen2": ("chatml_direct", DINOV2, {"model_type": "qwen2"}, {"projector_hidden_act": "gelu_pytorch_tanh"}),
}


SLOW = ("TinyLLaVA, stablelm", "TinyLLaVA, tinyllama")


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS]
)
def pair(request, tmp_path_factory):
    """The reference, and its folder as its own classes save it."""
    template, tower, text, config = KINDS[request.param]
    words = tokenizer(template)
    reference = model("Llava", words, tower, text, **config)
    return reference, save(reference, words, tmp_path_factory.mktemp("llava"))


def save(reference, words, folder, images="CLIPImageProcessor", **settings):
    reference.save_pretrained(folder)
    words.save(folder)
    kind = getattr(transformers, f"{images}Pil", None) or getattr(transformers, images)
    kind(**{**IMAGES, **settings}).save_pretrained(folder)
    return folder


def opened_model(folder) -> Model:
    return Model(*read_folder(folder)[1::-1], read_folder(folder)[2])


def test_logits(pair):
    reference, folder = pair
    assert difference(opened_model(folder), reference, conversations()) <= 1e-4


def test_folders_go_both_ways(pair, tmp_path):
    """Theirs, ours, ours as another folder, theirs again: the same tensors, the same system."""
    reference, folder = pair
    params, system, words = open_folder(folder)
    write_folder(tmp_path / "again", params, system, words)
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    assert_same_weights(
        again, reference, unread=("model.vision_tower.head.", "model.vision_tower.embeddings.mask_token")
    )
    once_more = read_folder(tmp_path / "again")
    assert once_more.system == system
    assert once_more.tokenizer.to_json() == words.to_json()
    found, wanted = globs.flatten(once_more.params), globs.flatten(materialise(params))
    assert found.keys() == wanted.keys()
    assert all((found[path] == wanted[path]).all() for path in wanted)
    inputs = torch_inputs(opened_model(folder), conversations())
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(**inputs).logits.numpy(), reference(**inputs).logits.numpy())
    assert why_not(system) is None


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    words = tokenizer()
    reference = model("Llava", words, CLIP, LLAMA)
    return reference, save(reference, words, tmp_path_factory.mktemp("llava-1.5"))


def test_answers(llava):
    reference, folder = llava
    ours = opened_model(folder)
    for prompt in conversations():
        batch, inputs = ours.batch([prompt]), torch_inputs(ours, [prompt])
        with torch.no_grad():
            written = reference.generate(**inputs, max_new_tokens=16, do_sample=False, eos_token_id=None)
        expected = written[0, batch.tokens.shape[1] :].tolist()
        answer = generate(VLM(ours.system.model, ours.compute), ours.params, batch, np.full(1, 16), -1)[0]
        assert answer == expected


def test_a_row_without_an_image_is_the_language_model(llava):
    reference, folder = llava
    ours = opened_model(folder)
    alone = transformers.LlamaForCausalLM(reference.config.text_config).eval()
    alone.model.load_state_dict(reference.model.language_model.state_dict())
    alone.lm_head.load_state_dict(reference.lm_head.state_dict())
    batch = ours.batch(conversations())
    real = batch.segments[1] > 0
    with torch.no_grad():
        expected = alone(torch.tensor(batch.tokens[1][real][None], dtype=torch.long)).logits.numpy()[0]
    assert np.abs(np.asarray(ours.logits(batch))[1][real] - expected).max() <= 1e-4


def test_the_embeddings_move_with_the_mark(llava):
    ours = opened_model(llava[1])
    picture = tiny.png(40, 30, 7)
    network = VLM(ours.system.model, ours.compute)
    rows = {}
    for text in ("<image> What is it? 1", "What is <image> it? 1"):
        # The second image keeps the format from moving the first.
        turns = (Turn("user", f"{text} <image>"),)
        batch = ours.batch([Conversation(turns, (picture, tiny.png(20, 20, 8)))])
        variables = {"params": ours.params}
        visual = network.apply(variables, batch.patches, method=network.encode)
        embedded = network.apply(variables, batch.tokens, batch.splice, visual, method=network.embed)
        place = np.flatnonzero((batch.splice[0] >= 0) & (batch.splice[0] < 16))
        assert (np.diff(place) == 1).all()
        rows[text] = place[0], np.asarray(embedded)[0, place]
    (first, before), (second, after) = rows.values()
    assert first < second
    np.testing.assert_array_equal(before, after)


def test_supervised_tokens_are_the_answers(llava):
    ours = opened_model(llava[1])
    turns = (*conversations()[0].turns[:3], Turn("assistant", "photograph 2"))
    example = ours.system.preparer(ours.tokenizer, 512)(dataclasses.replace(conversations()[0], turns=turns))
    answers = [ours.tokenizer.encode_pieces([(" 128.50", False), ("</s>", True)]),
               ours.tokenizer.encode_pieces([(" photograph 2", False), ("</s>", True)])]  # fmt: skip
    chosen = np.asarray(example.tokens)[np.asarray(example.loss_weights) > 0]
    assert chosen.tolist() == [*answers[0], *answers[1]]


@has_torchvision
@pytest.mark.parametrize(
    ("images", "settings", "fit"),
    [
        ("CLIPImageProcessor", {}, "crop"),
        ("LlavaImageProcessor", {"do_pad": True}, "pad"),
        ("SiglipImageProcessor", {"size": SQUARE, "crop_size": None, "do_convert_rgb": True}, "stretch"),
    ],
)
def test_processors_of_all_three_kinds(llava, tmp_path, images, settings, fit):
    """Theirs is read, ours is written, and both see the pixels and the tokens that we see."""
    reference, _ = llava
    folder = save(reference, tokenizer(), tmp_path / "theirs", images, **settings)
    params, system, words = read_folder(folder)
    assert (system.layout.fit, system.layout.tile_size) == (fit, SIDE)
    write_folder(tmp_path / "ours", params, system, words)
    assert read_folder(tmp_path / "ours").system == system
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor).__name__ == "LlavaProcessor"
    processor.image_processor = slow_images(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "ours/config.json", tmp_path / "saved/config.json")
    shutil.copy(tmp_path / "ours/model.safetensors", tmp_path / "saved/model.safetensors")
    assert read_folder(tmp_path / "saved").system == system
    ours = Model(system, params, words)
    for data in (tiny.png(64, 32, 1), tiny.png(30, 31, 2), tiny.png(3, 20, 3)):
        prompt = Conversation((Turn("user", "<image>\nWhat is it?"),), (data,))
        inputs = torch_inputs(ours, [prompt])
        content = [{"type": "image", "image": Image.open(io.BytesIO(data))}, {"type": "text", "text": "What is it?"}]
        theirs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        assert theirs["input_ids"].tolist() == inputs["input_ids"].tolist()
        np.testing.assert_allclose(theirs["pixel_values"].numpy(), inputs["pixel_values"].numpy(), atol=1e-5)


def slow_images(folder):
    """The image processor that works with Pillow, as each version wants to be asked for it."""
    if importlib.util.find_spec("transformers.models.llava.image_processing_pil_llava") is None:
        return transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def test_a_release_that_says_little(llava, tmp_path):
    """As `llava-hf/llava-1.5-7b-hf`: no prompt format, a text config of a few entries, names of 4.x."""
    folder = shutil.copytree(llava[1], tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {
        "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    system = read_system(folder)
    decoder = system.model.decoder
    theirs = transformers.LlavaConfig(**config).text_config
    assert (decoder.width, decoder.depth, decoder.mlp_width, decoder.kv_heads, decoder.vocab_size) == (
        theirs.hidden_size, theirs.num_hidden_layers, theirs.intermediate_size, theirs.num_key_value_heads, 32064,
    )  # fmt: skip
    assert (system.template, system.layout.fit) == ("vicuna_v1", "crop")
    config["text_config"]["model_type"] = "persimmon"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no known one goes with a persimmon .* write it there as 'template'"):
        read_system(folder)


def changed(system: System, **changes) -> System:
    """A system with other values at these dotted names."""
    plain = to_plain(system)
    for name, value in changes.items():
        *parts, last = name.split("__")
        part = plain
        for key in parts:
            part = part[key]
        part[last] = value
    return build(System, plain)


def test_what_transformers_has_no_counterpart_for(llava):
    system = open_folder(llava[1]).system
    for changes, told in (
        ({"model__connector__depth": 1}, "two linear layers without norms, has depth 1"),
        ({"model__connector__norm": True}, "norm True"),
        ({"model__decoder__head_bias": True, "model__decoder__qkv_bias": True}, "that none of its decoders has"),
        (
            {"model__decoder": DECODERS["phi_2"]},
            "model.decoder.head_bias must be False: the head of its classes has none",
        ),
        ({"model__vision__embedding_norm": False}, "embedding_norm must be True"),
        ({"layout__fit": "pad", "layout__color": (0, 0, 0)}, "layout.color must be the mean"),
    ):
        assert told in why_not(changed(system, **changes))
    shuffled = changed(system, model__connector={"type": "pixel_shuffle_mlp"})
    assert why_not(shuffled).startswith(
        "no model of the layout 'hf' has vision_transformer with pixel_shuffle_mlp with single: internvl has"
    )
    assert "llava has vision_transformer with mlp with single" in why_not(shuffled)
    assert "has vision_transformer with mlp" in why_not(system, "internvl")


def test_settings_that_we_would_not_follow(llava, tmp_path):
    folder = shutil.copytree(llava[1], tmp_path / "x")
    path = next(p for p in (folder / "preprocessor_config.json", folder / "processor_config.json") if p.is_file())
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "resample": 2, "size": {"shortest_edge": 30}}))
    with pytest.raises(UserError, match=r"resample must be 3, is 2; size must be .* is .*30"):
        read_folder(folder)
    path.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    for name, value, told in (
        ("vision_feature_layer", [-2, -3], "vision_feature_layer must be a whole number"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy must be 'default', is 'full'"),
        ("vision_config", {**config["vision_config"], "model_type": "pixtral"}, "model_type is 'pixtral'; known: clip"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(UserError, match=told):
            read_folder(folder)


class OwnProjector(torch.nn.Sequential):
    """Yi-VL's, as `VL/llava/model/multimodal_projector/builder.py` of 01-ai/Yi has it."""

    def __init__(self, vision: int, width: int):
        super().__init__(
            torch.nn.Linear(vision, width), torch.nn.LayerNorm(width), torch.nn.GELU(),
            torch.nn.Linear(width, width), torch.nn.LayerNorm(width),
        )  # fmt: skip
        tiny.shake(self)


def test_yi_vl(llava, tmp_path):
    """Norms in the connector: LLaVA with a projector of its own."""
    reference = model("Llava", tokenizer(), CLIP, LLAMA)
    opened = read_folder(llava[1])
    torch.manual_seed(1)
    projector = OwnProjector(24, 32)
    reference.model.multi_modal_projector = projector
    config = dataclasses.replace(opened.system.model, connector=MLPConfig(norm=True))
    connector = {
        name: {"kernel": projector[i].weight.detach().numpy().T, "bias": projector[i].bias.detach().numpy()}
        for name, i in (("linear_0", 0), ("linear_1", 3))
    } | {
        name: {"scale": projector[i].weight.detach().numpy(), "bias": projector[i].bias.detach().numpy()}
        for name, i in (("norm_0", 1), ("norm_1", 4))
    }
    system = dataclasses.replace(opened.system, model=config)
    ours = Model(system, {**opened.params, "connector": connector}, opened.tokenizer)
    assert difference(ours, reference, conversations()) <= 1e-4


def test_llava_v1(llava):
    """One linear layer: tower, layer and language model put together by hand."""
    reference, folder = llava
    opened = read_folder(folder)
    torch.manual_seed(1)
    linear = torch.nn.Linear(24, 32)
    tower = transformers.CLIPVisionModel(reference.config.vision_config).eval()
    tower.load_state_dict(reference.model.vision_tower.state_dict())
    words = transformers.LlamaForCausalLM(reference.config.text_config).eval()
    words.model.load_state_dict(reference.model.language_model.state_dict())
    words.lm_head.load_state_dict(reference.lm_head.state_dict())
    kernel, bias = (value.detach().numpy() for value in (linear.weight.T, linear.bias))
    system = dataclasses.replace(
        opened.system, model=dataclasses.replace(opened.system.model, connector=MLPConfig(depth=1))
    )
    connector = {"linear_0": {"kernel": kernel, "bias": bias}}
    ours = Model(system, {**opened.params, "connector": connector}, opened.tokenizer)
    prompts = conversations()[:2]
    inputs = torch_inputs(ours, prompts)
    with torch.no_grad():
        seen = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        embedded = words.model.embed_tokens(inputs["input_ids"])
        places = inputs["input_ids"] == ours.tokenizer.token_id("<image>")
        embedded[places] = linear(seen).reshape(-1, 32)
        theirs = words(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits.numpy()
    real = inputs["attention_mask"].numpy() > 0
    assert np.abs(np.asarray(ours.logits(ours.batch(prompts))) - theirs)[real].max() <= 1e-4


def test_names_of_all_versions():
    """On the disk up to 4.57, on the disk from 5.0 on, and in memory."""
    config = {"vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}
    for names in (
        ("vision_tower.vision_model.x", "vision_tower.x", "model.vision_tower.x"),
        ("language_model.model.layers.0.x", "model.language_model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("image_newline", "model.image_newline"),
    ):
        assert {rename(name, config) for name in names} == {names[0]}
    config["vision_config"]["model_type"] = "dinov2"
    assert rename("model.vision_tower.x", config) == rename("vision_tower.x", config) == "vision_tower.x"


def test_the_color_of_the_padding_is_the_mean():
    assert tuple(int(255 * value) for value in CLIP_MEAN) == Single().color
