"""Runs of systems that are described in full, from the folders of a tower and of a language model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.meta_fixture import write_meta
from vlm_jax import globs
from vlm_jax.checkpoints import read_params
from vlm_jax.config import build, to_plain
from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.decoders import LLAMA
from vlm_jax.convert.folders import read_folder
from vlm_jax.convert.safetensors_folder import write_params
from vlm_jax.convert.towers import tower_shapes, write_tower
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.files import write_json
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vision_transformer import CLIP_MEAN, CLIP_STD, VisionConfig
from vlm_jax.models.vlm import init_decoder
from vlm_jax.run import run
from vlm_jax.start import open_start
from vlm_jax.training.recipe import Recipe, Start, recipe_config
from vlm_jax.training.workdir import Workdir

TOWER = VisionConfig(
    image_size=16, patch_size=8, width=16, depth=2, heads=2, mlp_width=24, norm_eps=1e-5, patch_bias=False,
    embedding_norm=True, pooling_norm=True, layer_scale=None, drop_path=0.0, mean=CLIP_MEAN, std=CLIP_STD,
)  # fmt: skip
"""A CLIP for smaller images than the systems'."""
WORDS = DecoderConfig(
    vocab_size=310, width=24, depth=2, heads=2, kv_heads=2, head_dim=12, mlp_width=32, qkv_bias=False, rope_theta=1e4,
    max_tokens=512,
)  # fmt: skip
ROWS = 330

ALIGN = dict(
    name="align", objective=dict(type="generate"), trainable=("connector/**",), steps=1, template="plain",
    data=dict(rows=8, tokens=512, tiles=16), optimizer=dict(learning_rate=1e-3, warmup_ratio=0.0),
)  # fmt: skip


def tokenizer() -> Tokenizer:
    """A language model's: no token for an image, and no `</s>`."""
    trained = Tokenizer.train(tiny.TEXTS, 300, TEMPLATES["plain"])
    content = json.loads(trained.to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<image>"]
    return Tokenizer._from_json(json.dumps(content), {"pad_token": "<|endoftext|>"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a tower and of a language model, as they are released, and their parameters."""
    root = tmp_path_factory.mktemp("parts")
    shapes = tower_shapes(TOWER)
    rng = np.random.default_rng(0)
    fresh = {path: rng.standard_normal(shape).astype(np.float32) * 0.2 for path, shape in shapes.items()}
    write_tower(root / "clip", globs.unflatten(fresh), TOWER, family=CLIP)
    decoder = jax.tree.map(np.asarray, init_decoder(WORDS, jax.random.key(1)))
    words = root / "llama"
    words.mkdir()
    write_params(words, LLAMA.rules, decoder, "float32")
    tokenizer().save(words, TEMPLATES["plain"])
    write_json(words / "config.json", LLAMA.write(WORDS, stop_id=2, pad_id=0, dtype="float32"))
    return str(root / "clip"), str(words), fresh, decoder["decoder"]


def system(**changes) -> dict:
    """LLaVA-1.5's, small: tiles of twice the tower's own side."""
    vision = {**to_plain(TOWER), "image_size": 32, "feature_layer": -2, "drop_path": 0.1}
    decoder = {**to_plain(WORDS), "vocab_size": ROWS}
    fields = {
        "model": {"vision": vision, "connector": {"type": "mlp"}, "decoder": decoder},
        "layout": {"type": "single", "tile_size": 32, "fit": "pad"},
        "template": "vicuna_v1",
    }
    for name, value in changes.items():
        *parts, last = name.split("__")
        part = fields
        for key in parts:
            part = part[key]
        part[last] = value
    return fields


def recipe(folders, meta="", system=None, **fields) -> Recipe:
    start = Start(vision=folders[0], decoder=folders[1])
    plain = dict(
        name="x", system=system, data=dict(type="meta", train=str(meta)), stages=[ALIGN],
        compute=dict(dtype="float32", remat="none"), runtime=dict(mesh=dict(data=8, fsdp=1)),
    )  # fmt: skip
    return build(Recipe, recipe_config(**{**plain, "start": to_plain(start), **fields}))


NEXT = dict(layout={"type": "any_res", "tile_size": 32}, model__vectors=("newline",))


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow, id="LLaVA-1.5"), pytest.param(NEXT, id="LLaVA-NeXT")]
)
def test_a_step_from_folders(folders, changes, tmp_path):
    """The connector moves, all else is what the folders hold, and what comes out is a folder of `transformers`'."""
    meta = write_meta(tmp_path / "data", scale=0.1)
    stage = dict(ALIGN, template=None)  # captions alone would leave out most of the data
    run(recipe(folders, meta, system(**changes), stages=[stage]), tmp_path / "run")
    params = globs.flatten(read_params(tmp_path / "run/checkpoints")[0])
    _, _, tower, words = folders
    for path, value in tower.items():
        if path != "vision/position_embedding":
            np.testing.assert_array_equal(params[path], value)
    assert params["vision/position_embedding"].shape == (17, 16)
    for path, value in globs.flatten({"decoder": words}).items():
        kept = tokenizer().vocab_size if path.endswith("embedding") else None
        if "head" not in path:
            np.testing.assert_array_equal(params[path][:kept], value[:kept])
    assert all(params[f"connector/linear_{number}/bias"].any() for number in (0, 1))  # zeros are what it begins with
    assert params["decoder/head/kernel"].shape == (24, ROWS)
    assert ("connector/newline" in params) == bool(changes)
    exported = read_folder(tmp_path / "run/export")
    assert exported.system == build(type(exported.system), system(**changes))
    assert exported.tokenizer.has("<image>", "<s>", "</s>")


def test_what_the_parts_become(folders):
    described = recipe(folders, system=system())
    _, opened = open_start(described, Workdir("nowhere"))
    known = tokenizer().vocab_size
    embedding, old = opened.params["decoder"]["embedding"], folders[3]["embedding"]
    np.testing.assert_array_equal(embedding[:known], old[:known])
    np.testing.assert_allclose(embedding[known:], np.tile(old[:known].mean(0), (ROWS - known, 1)), atol=1e-6)
    assert opened.tokenizer.token_id("<image>") >= known
    assert set(opened.params["connector"]) == {"linear_0", "linear_1"}
    assert opened.system == described.system
    # A first stage with smaller tiles begins with the tower's own table.
    small = dict(ALIGN, name="small", image_size=16)
    _, opened = open_start(recipe(folders, system=system(), stages=[small, ALIGN]), Workdir("nowhere"))
    np.testing.assert_array_equal(
        opened.params["vision"]["position_embedding"], folders[2]["vision/position_embedding"]
    )
    # A tower's last norm, under the name that the system has for it, or not at all.
    for name in ("final_norm", None):
        norms = dict.fromkeys(("model__vision__final_norm", "model__vision__pooling_norm"), False)
        if name:
            norms[f"model__vision__{name}"] = True
        _, opened = open_start(recipe(folders, system=system(**norms)), Workdir("nowhere"))
        assert {"final_norm", "pooling_norm"} & set(opened.params["vision"]) == ({name} if name else set())


def test_what_differs_is_told(folders):
    other = system(
        model__vision__depth=3, model__vision__layer_scale=1.0, model__decoder__rope_theta=5e6,
        model__decoder__tie_embeddings=True,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        open_start(recipe(folders, system=other), Workdir("nowhere"))
    for part in (
        "clip with ", "another model than config.system.model: ", "vision.depth is 3, the folder's 2",
        "vision.layer_scale is 1.0, the folder's None", "decoder.rope_theta is 5000000.0, the folder's 10000.0",
        "decoder.tie_embeddings is True, the folder's False",
    ):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"decoder\.vocab_size is 290, but .* words, and with the tokens of the prompt"):
        open_start(recipe(folders, system=system(model__decoder__vocab_size=290)), Workdir("nowhere"))


def test_a_system_without_a_tower(folders):
    """Patches are projected at random; the language model comes from its folder."""
    fields = system(
        model__vision={"type": "patch_projection", "patch_size": 8, "width": 24, "patches": 8},
        model__connector={"type": "identity"},
        layout={"type": "native_raster", "patch_size": 8, "max_width": 48, "max_height": 48, "slot": 8},
    )
    described = recipe(folders, system=fields)
    with pytest.raises(UserError, match=r"of the language model \(there is no tower\), as --config.start.decoder=DIR"):
        open_start(described, Workdir("nowhere"))
    described = dataclasses.replace(described, start=Start(decoder=folders[1]))
    _, opened = open_start(described, Workdir("nowhere"))
    assert set(opened.params) == {"vision", "decoder"}
    assert opened.params["vision"]["patch_embedding"]["kernel"].shape == (192, 24)
    with pytest.raises(UserError, match="of both parts"):
        open_start(recipe(folders, system=system(), start=dict(decoder=folders[1])), Workdir("nowhere"))
