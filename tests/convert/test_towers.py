"""Folders of vision towers against `transformers`, which wrote them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert import internvl_chat, internvl_hf
from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.dinov2 import DINOV2
from vlm_jax.convert.internvl_hf import INTERNVL_VISION
from vlm_jax.convert.siglip import SIGLIP
from vlm_jax.convert.towers import read_tower, tower_shapes, write_tower
from vlm_jax.data.layouts.patches import patchify
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    VisionConfig,
    VisionTransformer,
)

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
TEXT = {**SIZES, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}
# 36 pixels are four patches of 8 and a rest that no patch covers.
IMAGE = {"image_size": 36, "patch_size": 8}
DINOV2_FIELDS = {"mlp_ratio": 2, "layerscale_value": 0.5}
INTERNVIT_KEYS = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "encoder.layer.": "encoder.layers.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}
KINDS = {
    "CLIPModel": CLIP_MEAN,
    "CLIPVisionModel": CLIP_MEAN,
    "CLIPVisionModelWithProjection": CLIP_MEAN,
    "OpenCLIP": CLIP_MEAN,
    "SiglipModel": (0.5,) * 3,
    "SiglipVisionModel": (0.5,) * 3,
    "Dinov2Model": IMAGENET_MEAN,
    "Dinov2ForImageClassification": IMAGENET_MEAN,
    "InternVLVisionModel": IMAGENET_MEAN,
    "InternViT-300M": IMAGENET_MEAN,
    "InternViT-6B": IMAGENET_MEAN,
}
STD = {CLIP_MEAN: CLIP_STD, IMAGENET_MEAN: IMAGENET_STD, (0.5,) * 3: (0.5,) * 3}


def reference_of(kind):
    """A small random model of `transformers` that ends in a vision tower, and the tower."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    if kind.startswith("Intern"):
        large = kind == "InternViT-6B"
        config = transformers.InternVLVisionConfig(
            **SIZES, image_size=[36, 36], patch_size=[8, 8], attention_bias=not large, use_qk_norm=large,
            norm_type="rms_norm" if large else "layer_norm", layer_scale_init_value=0.1 if large else 1.0,
        )  # fmt: skip
        model = transformers.InternVLVisionModel(config)
    elif kind.startswith("Dinov2"):
        config = transformers.Dinov2Config(**{**SIZES, "intermediate_size": None}, **IMAGE, **DINOV2_FIELDS)
        model = getattr(transformers, kind)(config)
    elif kind == "OpenCLIP":
        config = transformers.CLIPVisionConfig(**SIZES, **IMAGE, hidden_act="gelu", layer_norm_eps=1e-3)
        model = transformers.CLIPVisionModel(config)
    else:
        config_class = transformers.CLIPConfig if kind.startswith("CLIP") else transformers.SiglipConfig
        config = config_class(text_config=TEXT, vision_config={**SIZES, **IMAGE})
        model = getattr(transformers, kind)(config if kind in ("CLIPModel", "SiglipModel") else config.vision_config)
    tiny.shake(model.eval())
    return model, getattr(model, "vision_model", getattr(model, "dinov2", model))


def save_internvit(model, folder, large):
    """The tensors of `InternVLVisionModel` as OpenGVLab's own folders have them, by rules written here by hand."""
    stored = {}
    for name, value in model.state_dict().items():
        for theirs, original in INTERNVIT_KEYS.items():
            name = name.replace(theirs, original)
        stored[name] = value.numpy()
    for i in range(SIZES["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        for kind in ("weight",) if large else ("weight", "bias"):
            parts = [stored.pop(f"{layer}.attention.{x}_proj.{kind}") for x in "qkv"]
            stored[f"{layer}.attn.qkv.{kind}"] = np.concatenate(parts)
    save_file(stored, folder / "model.safetensors")
    config = {
        **SIZES, **IMAGE, "model_type": "intern_vit_6b", "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "norm_type": "rms_norm" if large else "layer_norm", "qkv_bias": not large, "qk_normalization": large,
        "initializer_factor": 0.1 if large else 1.0, "drop_path_rate": 0.1, "num_channels": 3, "use_flash_attn": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=KINDS)
def tower(request, tmp_path_factory):
    """The kind, its folder, and the tower in `transformers`."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("tower")
    model, reference = reference_of(request.param)
    if request.param.startswith("InternViT"):
        save_internvit(model, folder, large=request.param == "InternViT-6B")
    else:
        model.save_pretrained(folder)
    return request.param, folder, reference


def pictures(height, width=None):
    return np.random.default_rng(0).integers(0, 256, (2, height, width or height, 3), dtype=np.uint8)


def hidden_states(reference, tiles, mean, **flags):
    import torch

    pixels = (tiles / 255 - np.array(mean)) / np.array(STD[mean])
    with torch.no_grad():
        pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
        return reference(pixel_values=pixels, output_hidden_states=True, **flags)


def ours(params, vision, tiles, **flags):
    return VisionTransformer(vision, Compute()).apply({"params": params["vision"]}, tiles, **flags)


@pytest.mark.torch
def test_hidden_states(tower):
    kind, folder, reference = tower
    params, vision = read_tower(folder)
    assert (vision.mean, vision.std, vision.grid) == (KINDS[kind], STD[KINDS[kind]], 4)
    tiles = pictures(36)
    last, captured = ours(params, vision, patchify(tiles, 8), capture=3)
    theirs = hidden_states(reference, tiles, KINDS[kind])
    assert last.shape == (2, 17 if vision.class_token else 16, 24)
    assert np.abs(theirs.last_hidden_state.numpy()).max() > 1
    assert np.abs(last - theirs.last_hidden_state.numpy()).max() <= 1e-5
    for k in (-1, -2, -3):
        np.testing.assert_allclose(captured[k], theirs.hidden_states[k], rtol=1e-5, atol=1e-5)
    for k in (-2, -3, 0):
        state, _ = ours(params, dataclasses.replace(vision, feature_layer=k), patchify(tiles, 8))
        np.testing.assert_allclose(state, theirs.hidden_states[k], rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["CLIPModel", "SiglipVisionModel", "Dinov2Model"])
def test_another_image_size(kind, tmp_path):
    model, reference = reference_of(kind)
    model.save_pretrained(tmp_path)
    flags = {} if kind == "Dinov2Model" else {"interpolate_pos_encoding": True}  # DINOv2 does it unasked
    params, vision = read_tower(tmp_path, image_size=59)
    assert (vision.image_size, vision.grid) == (59, 7)
    tiles = pictures(59)
    last, _ = ours(params, vision, patchify(tiles, 8))
    theirs = hidden_states(reference, tiles, KINDS[kind], **flags).last_hidden_state.numpy()
    assert np.abs(last - theirs).max() <= 1e-5

    # The same with the table as it is stored, and pictures that are not square, of as many patches as the table or not.
    params, vision = read_tower(tmp_path)
    last, _ = ours(params, vision, patchify(tiles, 8), grid=(7, 7))
    assert np.abs(last - theirs).max() <= 1e-5
    for height, width in ((3, 5), (2, 8)):
        tiles = pictures(8 * height + 3, 8 * width + 1)
        theirs = hidden_states(reference, tiles, KINDS[kind], **flags)
        for k, expected in ((-1, theirs.last_hidden_state), *((k, theirs.hidden_states[k]) for k in (-2, -3))):
            config = dataclasses.replace(vision, feature_layer=k)
            state, _ = ours(params, config, patchify(tiles, 8), grid=(height, width))
            np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
def test_what_is_not_known_is_an_error(tower, tmp_path):
    kind, folder, _ = tower
    folder = shutil.copytree(folder, tmp_path / "copy")
    stored = load_file(folder / "model.safetensors")
    prefixes = ("vision_model.", "dinov2.")
    prefix = next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in stored)), "")
    scale = next(key for key in stored if key.startswith(f"{prefix}encoder") and ".1." in key and "fc1.weight" in key)
    stored[f"{prefix}extra.weight"] = stored.pop(scale)
    if "CLIP" in kind or kind.startswith("Siglip"):  # what older folders hold besides
        stored[f"{prefix}embeddings.position_ids"] = np.arange(17)[None]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"\(2 problems\): missing: enc.*fc1\.weight; not used by .*: extra\.weight$"):
        read_tower(folder)
    stored[scale] = stored.pop(f"{prefix}extra.weight")
    save_file(stored, folder / "model.safetensors")
    read_tower(folder)


@pytest.mark.torch
def test_the_image_processor_goes_before_the_config(tmp_path):
    model, reference = reference_of("SiglipVisionModel")
    model.save_pretrained(tmp_path)
    images = {
        "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD), "size": {"height": 59, "width": 59},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    params, vision = read_tower(tmp_path)
    tiles = pictures(59)
    theirs = hidden_states(reference, tiles, IMAGENET_MEAN, interpolate_pos_encoding=True)
    last, _ = ours(params, vision, patchify(tiles, 8))
    assert np.abs(last - theirs.last_hidden_state.numpy()).max() <= 1e-5
    assert read_tower(tmp_path, image_size=36)[1].image_size == 36


@pytest.mark.torch
def test_fields_that_a_folder_leaves_out(tower, tmp_path):
    """Folders that hold no more than what differs from the defaults of the config's class."""
    folder = shutil.copytree(tower[1], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    part = config.get("vision_config", config)
    kept = {"model_type", "norm_type", "qkv_bias", "qk_normalization", "initializer_factor", "attention_bias",
            "layer_scale_init_value", *SIZES, *IMAGE, *DINOV2_FIELDS}  # fmt: skip
    if tower[0] == "OpenCLIP":
        kept |= {"hidden_act", "layer_norm_eps"}
    for name in set(part) - kept - {"drop_path_rate"}:
        if name not in ("text_config", "architectures"):
            del part[name]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_tower(folder)[1] == read_tower(tower[1])[1]
    if "vision_config" in config:  # as OpenAI's have it: `transformers` takes what the second says
        config["vision_config_dict"] = dict(part)
        config["vision_config"] = {**part, "num_hidden_layers": 7}
        (folder / "config.json").write_text(json.dumps(config))
        assert read_tower(folder)[1].depth == 3


def test_an_unknown_tower(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    with pytest.raises(UserError, match=r"config\.json: model_type is 'beit'; vision towers: intern_vit_6b, .*clip"):
        read_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "use_swiglu_ffn": True}))
    with pytest.raises(UserError, match=r"config\.json: use_swiglu_ffn must be False, is True$"):
        read_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match=r"config\.json: 'vision_config' is missing"):
        read_tower(tmp_path)
    strange = {"model_type": "clip_vision_model", "num_channels": 4, "hidden_act": "quick_gelu", "patch_size": [14, 7]}
    (tmp_path / "config.json").write_text(json.dumps(strange))
    with pytest.raises(UserError, match=r"num_channels must be 3, is 4; patch_size must be square, is \[14, 7\]"):
        read_tower(tmp_path)


SMALL = VisionConfig(image_size=32, patch_size=8, width=24, depth=2, heads=3, mlp_width=40, mean=(0.1, 0.2, 0.3))


def random_params(vision):
    rng = np.random.default_rng(0)
    shapes = tower_shapes(vision)
    return globs.unflatten({path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()})


@pytest.mark.parametrize("large", [False, True])
def test_a_written_internvit_comes_back(large, tmp_path):
    vision = SMALL
    if large:
        vision = dataclasses.replace(vision, norm="rms_norm", qk_norm="full", qkv_bias=False, drop_path=0.0)
    params = random_params(vision)
    write_tower(tmp_path / "x", {**params, "decoder": {}}, vision, shard_bytes=20_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"], "something was left aside"
    again, config = read_tower(tmp_path / "x")
    assert config == vision
    found, wanted = globs.flatten(again), globs.flatten(params)
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=path)
    images = json.loads((tmp_path / "x/preprocessor_config.json").read_text())
    assert (images["image_mean"], images["crop_size"]) == ([0.1, 0.2, 0.3], 32)
    assert json.loads((tmp_path / "x/config.json").read_text())["model_type"] == "intern_vit_6b"
    with pytest.raises(UserError, match="already exists"):
        write_tower(tmp_path / "x", params, vision)
    write_tower(tmp_path / "x", params, vision, "bfloat16", overwrite=True)
    assert globs.flatten(read_tower(tmp_path / "x")[0])["vision/class_embedding"].dtype == "bfloat16"


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["InternViT-300M", "InternViT-6B"])
def test_the_original_layout_gives_equal_bytes(kind, tmp_path):
    (tmp_path / "a").mkdir()
    save_internvit(reference_of(kind)[0], tmp_path / "a", large=kind == "InternViT-6B")
    params, vision = read_tower(tmp_path / "a")
    write_tower(tmp_path / "b", params, vision)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert first.items() <= second.items()


FAMILIES = {
    "OpenCLIP": CLIP,
    "SiglipVisionModel": SIGLIP,
    "Dinov2Model": DINOV2,
    "InternVLVisionModel": INTERNVL_VISION,
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_written_tower_loads_in_transformers(kind, tmp_path):
    import transformers

    model, _ = reference_of(kind)
    model.save_pretrained(tmp_path / "a")
    params, vision = read_tower(tmp_path / "a")
    passed = dataclasses.replace(vision, feature_layer=-2, mean=(0.1, 0.2, 0.3))
    write_tower(tmp_path / "b", params, passed, family=FAMILIES[kind])
    again, config = read_tower(tmp_path / "b")
    assert config == dataclasses.replace(vision, mean=(0.1, 0.2, 0.3))
    found, wanted = globs.flatten(again), globs.flatten(params)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)

    loaded, told = type(model).from_pretrained(tmp_path / "b", output_loading_info=True)
    not_written = {"SiglipVisionModel": {k for k in model.state_dict() if k.startswith("head.")},
                   "Dinov2Model": {"embeddings.mask_token"}}  # fmt: skip
    assert not any(told.values())
    mine, theirs = loaded.state_dict(), model.state_dict()
    assert theirs.keys() - mine.keys() == not_written.get(kind, set())
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "b", use_fast=False)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    pixels = processor(images=np.zeros((50, 70, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 36, 36)


def test_the_table_of_a_dinov2_stays_as_large_as_it_is(tmp_path):
    """Its releases have one for 518 pixels, and an image processor for 224."""
    vision = dataclasses.replace(SMALL, final_norm=True, mlp_width=48, mean=IMAGENET_MEAN, drop_path=0.0)
    write_tower(tmp_path / "x", random_params(vision), vision, family=DINOV2)
    images = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 20}, "do_center_crop": True}
    (tmp_path / "x/preprocessor_config.json").write_text(json.dumps(images))
    assert read_tower(tmp_path / "x")[1] == vision
    assert read_tower(tmp_path / "x", image_size=16)[1].grid == 2


def test_a_tower_is_written_as_its_own_family_alone(tmp_path):
    vision = dataclasses.replace(SMALL, final_norm=True, mlp_width=40)
    with pytest.raises(UserError) as error:
        write_tower(tmp_path / "x", random_params(vision), vision, family=SIGLIP)
    problems = "class_token must be False, is True; layer_scale must be None, is 1.0"
    assert str(error.value) == f"model.vision cannot be stored as a siglip_vision_model: {problems}"
    with pytest.raises(UserError, match=r"as a dinov2: mlp_width must be 24, is 40$"):
        write_tower(tmp_path / "x", random_params(vision), vision, family=DINOV2)
    bare = dataclasses.replace(SMALL, norm_eps=1e-5, layer_scale=None, embedding_norm=True, patch_bias=False)
    with pytest.raises(UserError, match=r"clip_vision_model: final_norm or pooling_norm must be True, is False$"):
        write_tower(tmp_path / "x", random_params(bare), bare, family=CLIP)
    assert not list(tmp_path.iterdir())


def test_a_tower_that_is_no_internvit_writes_nothing(tmp_path):
    vision = dataclasses.replace(SMALL, class_token=False, final_norm=True, layer_scale=None)
    with pytest.raises(UserError) as error:
        write_tower(tmp_path / "x", random_params(vision), vision)
    for part in ("class_token must be True", "final_norm must be False", "layer_scale must be a number"):
        assert part in str(error.value)
    params = random_params(SMALL)
    del params["vision"]["class_embedding"]
    params["vision"]["patch_embedding"]["bias"] = np.zeros(7)
    with pytest.raises(UserError, match=r"missing: vision/class_embedding; wrong shape: vision/patch_emb\w+/bias is"):
        write_tower(tmp_path / "x", params, SMALL)
    assert not list(tmp_path.iterdir())


IDS = {"image_id": 1, "stop_id": 2, "pad_id": 3, "dtype": "float32"}


def system_with(**fields):
    system = tiny.system()
    vision = dataclasses.replace(system.model.vision, **fields)
    return dataclasses.replace(system, model=dataclasses.replace(system.model, vision=vision))


def test_layouts_of_internvl_refuse_other_towers():
    odd = system_with(embedding_norm=True, patch_bias=False)
    for layout in (internvl_hf, internvl_chat):
        with pytest.raises(UserError, match=r"vision.*patch_bias must be True, is False.*embedding_norm must be False"):
            layout.write_config(odd, **IDS)
    with pytest.raises(UserError, match=r"normalises pixels with ImageNet's mean and std, not with \(0\.5, "):
        internvl_chat.write_config(system_with(mean=(0.5, 0.5, 0.5)), **IDS)


def test_the_feature_layer_of_a_written_system():
    system = system_with(feature_layer=-2)
    hf = internvl_hf.write_config(system, **IDS)
    images = internvl_hf.processor_files(system)["preprocessor_config.json"]
    assert hf["vision_feature_layer"] == -2
    assert internvl_hf.read_config(hf, images).model.vision == system.model.vision
    plain = dataclasses.replace(system.model.vision, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    system = dataclasses.replace(system, model=dataclasses.replace(system.model, vision=plain))
    chat = internvl_chat.write_config(system, **IDS)
    assert chat["select_layer"] == -2
    assert internvl_chat.read_config(chat, {}).model.vision == plain
    with pytest.raises(UserError, match="vision_feature_layer must be a whole number, is 'last'"):
        internvl_hf.read_config({**hf, "vision_feature_layer": "last"}, images)


def test_pixel_statistics_of_a_written_system():
    system = system_with(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    config = internvl_hf.write_config(system, **IDS)
    images = internvl_hf.processor_files(system)["preprocessor_config.json"]
    assert (images["image_mean"], images["image_std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    assert internvl_hf.read_config(config, images).model.vision == system.model.vision
