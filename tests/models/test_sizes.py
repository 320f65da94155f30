"""Released decoders at their true sizes: nothing is computed, shapes and counts are compared."""

import math
from functools import cache

import pytest

from vlm_jax.config import build
from vlm_jax.convert import table
from vlm_jax.convert.decoders import IN_TRANSFORMERS, family_for
from vlm_jax.convert.language_models import decoder_shapes
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.sizes import DECODERS

PARAMETERS = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "tinyllama_1_1b": 1_100_048_384,
    "mistral_7b": 7_241_732_096,
    "yi_6b": 6_061_035_520,
    "yi_34b": 34_388_917_248,
    "qwen2_0_5b": 494_032_768,
    "phi_2": 2_779_683_840,
    "stablelm_2_1_6b": 1_644_515_328,
    "gemma_2b": 2_506_172_416,
    "persimmon_8b": 9_397_175_296,
}
SAME_SHAPES = {
    "vicuna_7b": "llama_7b", "vicuna_13b": "llama_13b", "llama_2_7b": "llama_7b", "llama_2_13b": "llama_13b",
    "vicuna_7b_v1_5": "llama_7b", "vicuna_13b_v1_5": "llama_13b", "mistral_7b_v0_2": "mistral_7b",
}  # fmt: skip


def config_of(name) -> DecoderConfig:
    return build(DecoderConfig, DECODERS[name])


@cache
def shapes_of(name):
    return decoder_shapes(config_of(name))


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert sum(map(math.prod, shapes_of(name).values())) == PARAMETERS[name]


def test_every_size_is_held_to_one_of_them():
    assert {*PARAMETERS, *SAME_SHAPES} == set(DECODERS)
    sizes = ("vocab_size", "width", "depth", "heads", "kv_heads", "head_dim", "mlp_width")
    for name, other in SAME_SHAPES.items():
        one, two = config_of(name), config_of(other)
        assert all(getattr(one, size) == getattr(two, size) for size in sizes)


@pytest.mark.torch
@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_builds_the_same_of_the_config_that_is_written(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = family_for(IN_TRANSFORMERS, config_of(name))
    written = family.write(config_of(name), stop_id=2, pad_id=0, dtype="float32")
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**written))
    assert type(reference).__name__ == family.architecture
    stored = {key: tuple(value.shape) for key, value in reference.named_parameters()}
    assert {key: stored.shape for key, stored in table.plan(family.rules, shapes_of(name)).items()} == stored
