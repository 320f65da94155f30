import jax
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.models.connector import MLPConfig, PixelShuffleMLPConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.sizes import DECODERS
from vlm_jax.models.vision_transformer import VisionConfig, init_tower
from vlm_jax.models.vlm import VLMConfig, init_decoder, init_params
from vlm_jax.sharding import MeshConfig, describe, make_mesh, parameter_sharding, partition


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=2, tensor=4), jax.devices())


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        # 16 heads divide by 4; 14 heads and 2 KV heads do not and fall to the head dimension
        ("vision/layers/0/attention/query/kernel", (1024, 16, 64), P("fsdp", "tensor", None)),
        ("decoder/layers/0/attention/query/kernel", (896, 14, 64), P("fsdp", None, "tensor")),
        ("decoder/layers/0/attention/key/kernel", (896, 2, 64), P("fsdp", None, "tensor")),
        ("decoder/layers/0/attention/out/kernel", (14, 64, 896), P(None, "tensor", "fsdp")),
        ("decoder/layers/0/mlp/down/kernel", (4864, 896), P("tensor", "fsdp")),
        ("decoder/embedding", (151655, 896), P(None, "fsdp")),
        ("decoder/norm/scale", (896,), P()),
        ("teacher/connector/up/kernel", (4096, 896), P("fsdp", "tensor")),
    ],
)
def test_axes_that_do_not_divide_fall_to_the_next_rule(mesh, path, shape, spec):
    assert parameter_sharding(path, shape, mesh).spec == spec


def test_batch_that_does_not_divide_is_split_as_far_as_it_goes(mesh):
    assert partition((8, 3), ("batch", None), mesh) == P(("data", "fsdp"), None)
    assert partition((3, 3), ("batch", None), mesh) == P(None, None)


def test_every_parameter_of_the_1b_model_has_a_fitting_rule(mesh):
    config = VLMConfig(vision=VisionConfig(), connector=PixelShuffleMLPConfig(), decoder=DecoderConfig())
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    lines = describe(shapes, mesh)
    kernels = [line for line in lines if "kernel" in line or line.startswith("decoder/embedding")]
    assert len(lines) > 30
    assert all("fsdp" in line or "tensor" in line for line in kernels), kernels


@pytest.mark.parametrize(
    "fields",
    [
        {"patch_bias": False, "embedding_norm": True, "layer_scale": None},  # CLIP-L/14
        {"width": 1152, "mlp_width": 4304, "class_token": False, "final_norm": True, "layer_scale": None},  # so400m
        {
            "width": 3200,
            "heads": 25,
            "mlp_width": 12800,
            "norm": "rms_norm",
            "qk_norm": "full",
            "qkv_bias": False,
        },  # 6B
    ],
)
def test_every_parameter_of_other_towers_has_a_fitting_rule(mesh, fields):
    config = VisionConfig(depth=2, **fields)
    lines = describe({"vision": jax.eval_shape(lambda: init_tower(config, jax.random.key(0)))}, mesh)
    split = {line.split()[0] for line in lines if "fsdp" in line or "tensor" in line}
    large = {line.split()[0] for line in lines if line.split()[0].endswith(("kernel", "position_embedding"))}
    assert large <= split, large - split
    norms = [line for line in lines if "embedding_norm" in line or "final_norm" in line]
    assert all(line.endswith(" ()") for line in norms), norms
    assert len(norms) == (0 if "qk_norm" in fields else 2)


@pytest.mark.parametrize("name", ["phi_2", "persimmon_8b", "gemma_2b"])
def test_every_parameter_of_other_decoders_has_a_fitting_rule(mesh, name):
    config = build(DecoderConfig, {**DECODERS[name], "depth": 2})
    lines = describe(jax.eval_shape(lambda: init_decoder(config, jax.random.key(0))), mesh)
    split = {line.split()[0] for line in lines if "fsdp" in line or "tensor" in line}
    large = {line.split()[0] for line in lines if line.split()[0].endswith(("kernel", "embedding"))}
    assert large <= split, large - split
    whole = {"out/bias", "down/bias", "norm/bias", "norm/scale"}  # of the width that all devices hold
    biases = {line.split()[0] for line in lines} - large
    assert {path for path in biases if not path.endswith(tuple(whole))} <= split


def test_every_kernel_of_a_plain_connector_is_split(mesh):
    config = VLMConfig(vision=VisionConfig(depth=1), connector=MLPConfig(), decoder=DecoderConfig(depth=1))
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    lines = [line for line in describe(shapes, mesh) if "linear_" in line]
    assert len(lines) == 4
    assert all("tensor" in line for line in lines), lines
    assert all("fsdp" in line for line in lines if "kernel" in line), lines


def test_wrong_mesh_is_one_line():
    with pytest.raises(UserError, match=r"config\.runtime\.mesh: .* 3 x 1 x 1 does not lay out 8"):
        make_mesh(MeshConfig(data=3), jax.devices())
