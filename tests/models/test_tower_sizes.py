"""Sizes of released parts against the classes of `transformers`, built without weights from the releases' configs."""

import numpy as np
import pytest

from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.dinov2 import DINOV2
from vlm_jax.convert.internvl_hf import INTERNVL_VISION
from vlm_jax.convert.siglip import SIGLIP
from vlm_jax.convert.towers import tower_shapes
from vlm_jax.models.sizes import TOWERS
from vlm_jax.models.vision_transformer import VisionConfig

# What the releases' `config.json` say beyond the defaults of their classes.
RELEASES = {
    "clip_l14_224": (
        "CLIP", {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14}, 303_179_776),
    "clip_l14_336": (
        "CLIP", {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 336, "patch_size": 14}, 303_507_456),
    "openclip_h14_224": (
        "CLIP", {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "hidden_act": "gelu"}, 630_766_080),
    "siglip_so400m_384": (
        "Siglip", {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                   "image_size": 384, "patch_size": 14, "vision_use_head": False}, 412_987_248),
    "dinov2_l14": (
        "Dinov2", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518,
                   "use_mask_token": False}, 304_367_616),
    "internvit_300m_448": (
        "InternVLVision", {"image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
                           "use_mean_pooling": True, "layer_scale_init_value": 1.0, "drop_path_rate": 0.1},
        304_012_288),
    "internvit_6b_448": (
        "InternVLVision", {"hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45,
                           "num_attention_heads": 25, "image_size": [448, 448], "patch_size": [14, 14],
                           "norm_type": "rms_norm", "use_qk_norm": True, "use_mean_pooling": True}, 5_536_496_000),
}  # fmt: skip
FAMILIES = {"CLIP": CLIP, "Siglip": SIGLIP, "Dinov2": DINOV2, "InternVLVision": INTERNVL_VISION}


@pytest.mark.torch
@pytest.mark.parametrize("name", TOWERS)
def test_towers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, fields, parameters = RELEASES[name]
    with torch.device("meta"):
        part = "Vision" if kind in ("CLIP", "Siglip") else ""
        config = getattr(transformers, f"{kind}{part}Config")(**fields)
        reference = getattr(transformers, f"{kind}{part}Model")(config)
    vision = VisionConfig(**TOWERS[name])
    count = sum(int(np.prod(shape)) for shape in tower_shapes(vision).values())
    assert count == reference.num_parameters() == parameters
    # The release's config says what the table says.
    read = FAMILIES[kind].read_config(config.to_dict(), name)
    assert read == vision
