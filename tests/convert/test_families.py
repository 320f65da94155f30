"""Every decoder family in `transformers`' layout, and the same weights in InternVL's own, against `transformers`."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert.folders import open_model_params, parameter_shapes, read_folder, write_folder
from vlm_jax.convert.internvl_hf import read_config
from vlm_jax.inference.generate import generate
from vlm_jax.inference.model import Model
from vlm_jax.models.vlm import VLM

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

FACTORS = {"short_factor": (1.0, 1.5, 2.0, 3.0), "long_factor": (1.0, 2.0, 4.0, 9.0)}

FAMILIES = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    # Sequences of the test are longer and shorter than these limits.
    "llama, dynamic NTK": (
        "llama",
        {
            "rope_parameters": (("rope_type", "dynamic"), ("rope_theta", 1e4), ("factor", 2.0)),
            "max_position_embeddings": 130,
            "hidden_size": 48,
            "rms_norm_eps": 1e-5,
        },
    ),
    "llama, linear": (
        "llama",
        {
            "rope_parameters": (("rope_type", "linear"), ("rope_theta", 1e4), ("factor", 4.0)),
            "num_key_value_heads": 6,
            "hidden_size": 48,
        },
    ),
    "llama, llama3": (
        "llama",
        {
            "rope_parameters": (
                ("rope_type", "llama3"), ("rope_theta", 1e2), ("factor", 8.0), ("low_freq_factor", 1.0),
                ("high_freq_factor", 4.0), ("original_max_position_embeddings", 64),
            ),
            "hidden_size": 48,
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "rope_parameters": (
                ("rope_type", "longrope"), ("rope_theta", 1e4), ("original_max_position_embeddings", 100),
                *FACTORS.items(),
            ),
            "original_max_position_embeddings": 100,
            "hidden_size": 48,
            "rms_norm_eps": 1e-5,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """The reference, and our model of the folder that `save_pretrained` wrote."""
    model_type, text = FAMILIES[request.param]
    reference = tiny.torch_model(model_type, **text)
    folder = tmp_path_factory.mktemp("released")
    reference.save_pretrained(folder)
    system = read_config(json.loads((folder / "config.json").read_text()), {"max_patches": 4})
    return reference, Model(system, open_model_params(folder, system.model), tiny.tokenizer())


def rows_of(batch):
    """Row by row what the reference is given: it scales rotary frequencies by the longest row of a batch."""
    inputs = tiny.torch_inputs(batch)
    tiles = np.cumsum([0, *(batch.tile_segment > 0).sum(axis=1)])
    for row, length in enumerate((batch.segments > 0).sum(axis=1)):
        own = inputs["pixel_values"][tiles[row] : tiles[row + 1]]
        yield (
            row,
            length,
            {
                "input_ids": inputs["input_ids"][row : row + 1, :length],
                "attention_mask": torch.ones(1, int(length), dtype=torch.long),
                **({"pixel_values": own} if len(own) else {}),
            },
        )


def test_logits_and_greedy_tokens(pair):
    reference, ours = pair
    batch = ours.batch(tiny.conversations())
    lengths = (batch.segments > 0).sum(axis=1)
    assert lengths.min() < 100 < 130 < lengths.max()  # on both sides of the limits above
    logits = np.asarray(ours.logits(batch))
    stop = tiny.tokenizer().token_id("<|im_end|>")
    answers = generate(VLM(ours.system.model, ours.compute), ours.params, batch, np.full(len(lengths), 64), stop)
    for row, length, inputs in rows_of(batch):
        with torch.no_grad():
            theirs = reference(**inputs).logits.numpy()[0]
            written = reference.generate(
                **inputs, max_new_tokens=64, do_sample=False, eos_token_id=stop, pad_token_id=0
            )
        assert np.abs(theirs).max() > 1
        assert np.abs(logits[row, :length] - theirs).max() <= 1e-4
        expected = written[0, length:].tolist()
        assert answers[row] == (expected[:-1] if expected[-1] == stop else expected)


def test_both_layouts_give_the_weights_back(pair, tmp_path):
    _, ours = pair
    for layout in ("hf", "internvl"):
        write_folder(tmp_path / layout, ours.params, ours.system, tiny.tokenizer(), layout=layout)
        params, system, _ = read_folder(tmp_path / layout)
        assert system == ours.system
        found, wanted = globs.flatten(params), globs.flatten(ours.params)
        assert found.keys() == wanted.keys() == parameter_shapes(system.model).keys()
        for path, array in found.items():
            np.testing.assert_array_equal(array, wanted[path], err_msg=path)


def test_transformers_reads_what_is_written(pair, tmp_path):
    reference, ours = pair
    write_folder(tmp_path / "hf", ours.params, ours.system, tiny.tokenizer())
    again = type(reference).from_pretrained(tmp_path / "hf").eval()
    batch = ours.batch(tiny.conversations())
    for _, _, inputs in rows_of(batch):
        with torch.no_grad():
            np.testing.assert_array_equal(again(**inputs).logits.numpy(), reference(**inputs).logits.numpy())


def test_original_names(tmp_path):
    """Every tensor of InternVL's own layout, from the reference's by rules written here by hand."""
    reference = tiny.torch_model(*FAMILIES["llama, dynamic NTK"][:1], **FAMILIES["llama, dynamic NTK"][1])
    reference.save_pretrained(tmp_path / "hf")
    system = read_config(json.loads((tmp_path / "hf/config.json").read_text()), {"max_patches": 4})
    params = open_model_params(tmp_path / "hf", system.model)
    write_folder(tmp_path / "internvl", params, system, tiny.tokenizer(), layout="internvl")
    found = load_file(tmp_path / "internvl/model.safetensors")
    theirs = load_file(tmp_path / "hf/model.safetensors")
    text, vision = "language_model.model.layers.{}", "vision_tower.encoder.layer.{}"
    heads, groups, size = 6, 2, 8
    for i in range(2):
        q, k, v = (theirs[f"{text.format(i)}.self_attn.{name}_proj.weight"] for name in "qkv")
        q, k, v = (x.reshape(groups, -1, size, x.shape[1]) for x in (q, k, v))
        assert q.shape[1] == heads // groups
        wqkv = found.pop(f"language_model.model.layers.{i}.attention.wqkv.weight")
        np.testing.assert_array_equal(wqkv, np.concatenate([q, k, v], axis=1).reshape(wqkv.shape))
        for ours, name in {
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w3": "mlp.up_proj",
            "feed_forward.w2": "mlp.down_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        }.items():
            got = found.pop(f"language_model.model.layers.{i}.{ours}.weight")
            np.testing.assert_array_equal(got, theirs[f"{text.format(i)}.{name}.weight"])
        for kind in ("weight", "bias"):
            qkv = [theirs[f"{vision.format(i)}.attention.{name}_proj.{kind}"] for name in "qkv"]
            got = found.pop(f"vision_model.encoder.layers.{i}.attn.qkv.{kind}")
            np.testing.assert_array_equal(got, np.concatenate(qkv))
            for ours, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "mlp.fc1"),
                               ("mlp.fc2", "mlp.fc2"), ("attn.proj", "attention.projection_layer")):  # fmt: skip
                got = found.pop(f"vision_model.encoder.layers.{i}.{ours}.{kind}")
                np.testing.assert_array_equal(got, theirs[f"{vision.format(i)}.{name}.{kind}"])
        for n in (1, 2):
            got = found.pop(f"vision_model.encoder.layers.{i}.ls{n}")
            np.testing.assert_array_equal(got, theirs[f"{vision.format(i)}.lambda_{n}"])
    rest = {
        "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
        "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
        "language_model.model.tok_embeddings.weight": "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight": "language_model.model.norm.weight",
        "language_model.output.weight": "language_model.lm_head.weight",
    }
    for kind in ("weight", "bias"):
        rest[f"vision_model.embeddings.patch_embedding.{kind}"] = (
            f"vision_tower.embeddings.patch_embeddings.projection.{kind}"
        )
        for number, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
            rest[f"mlp1.{number}.{kind}"] = f"multi_modal_projector.{name}.{kind}"
    for ours, name in rest.items():
        np.testing.assert_array_equal(found.pop(ours), theirs[name], err_msg=ours)
    assert not found
    config = json.loads((tmp_path / "internvl/config.json").read_text())
    assert config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
