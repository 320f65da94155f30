"""InternVL as `transformers` has it (`InternVLForConditionalGeneration`), with a Qwen2 decoder: names and config.

The names are those that `save_pretrained` writes, the only ones that load in every `transformers` from 4.52 on. Source:
`models/internvl/{configuration,modeling}_internvl.py` and `models/qwen2/` of `transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.table import Flat, Kernel, PatchKernel, Rule, Same, rule
from vlm_jax.data.tiling import ClosestAspect
from vlm_jax.errors import UserError
from vlm_jax.models.connector import PixelShuffleMLPConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.system import System

ARCHITECTURE = "InternVLForConditionalGeneration"
TEMPLATE_OF_RELEASES = "internvl2_5"
"""Prompt format of folders that do not name one: all official HF-native releases are InternVL2.5-MPO or InternVL3."""

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
_VISION, _THEIR_VISION = "vision/layers/{i}", "vision_tower.encoder.layer.{i}"
_TEXT, _THEIR_TEXT = "decoder/layers/{i}", "language_model.model.layers.{i}"


def _linear(path: str, key: str, in_axes: int = 1) -> list[Rule]:
    return [rule(f"{path}/kernel", f"{key}.weight", Kernel(in_axes)), rule(f"{path}/bias", f"{key}.bias", Flat())]


def _norm(path: str, key: str) -> list[Rule]:
    return [rule(f"{path}/scale", f"{key}.weight", Flat()), rule(f"{path}/bias", f"{key}.bias", Flat())]


VISION: list[Rule] = [
    rule("vision/class_embedding", "vision_tower.embeddings.cls_token", Same(leading=2)),
    rule("vision/position_embedding", "vision_tower.embeddings.position_embeddings", Same(leading=1)),
    rule("vision/patch_embedding/kernel", "vision_tower.embeddings.patch_embeddings.projection.weight", PatchKernel()),
    rule("vision/patch_embedding/bias", "vision_tower.embeddings.patch_embeddings.projection.bias", Flat()),
    *_norm(f"{_VISION}/attention_norm", f"{_THEIR_VISION}.layernorm_before"),
    *_norm(f"{_VISION}/mlp_norm", f"{_THEIR_VISION}.layernorm_after"),
    *_linear(f"{_VISION}/attention/query", f"{_THEIR_VISION}.attention.q_proj"),
    *_linear(f"{_VISION}/attention/key", f"{_THEIR_VISION}.attention.k_proj"),
    *_linear(f"{_VISION}/attention/value", f"{_THEIR_VISION}.attention.v_proj"),
    *_linear(f"{_VISION}/attention/out", f"{_THEIR_VISION}.attention.projection_layer", in_axes=2),
    *_norm(f"{_VISION}/attention/query_norm", f"{_THEIR_VISION}.attention.q_norm"),
    *_norm(f"{_VISION}/attention/key_norm", f"{_THEIR_VISION}.attention.k_norm"),
    *_linear(f"{_VISION}/mlp/up", f"{_THEIR_VISION}.mlp.fc1"),
    *_linear(f"{_VISION}/mlp/down", f"{_THEIR_VISION}.mlp.fc2"),
    rule(f"{_VISION}/attention_scale", f"{_THEIR_VISION}.lambda_1", Flat()),
    rule(f"{_VISION}/mlp_scale", f"{_THEIR_VISION}.lambda_2", Flat()),
]

CONNECTOR: list[Rule] = [
    *_norm("connector/norm", "multi_modal_projector.layer_norm"),
    *_linear("connector/up", "multi_modal_projector.linear_1"),
    *_linear("connector/down", "multi_modal_projector.linear_2"),
]

QWEN2: list[Rule] = [
    rule("decoder/embedding", "language_model.model.embed_tokens.weight", Same()),
    *_norm(f"{_TEXT}/attention_norm", f"{_THEIR_TEXT}.input_layernorm"),
    *_norm(f"{_TEXT}/mlp_norm", f"{_THEIR_TEXT}.post_attention_layernorm"),
    *_linear(f"{_TEXT}/attention/query", f"{_THEIR_TEXT}.self_attn.q_proj"),
    *_linear(f"{_TEXT}/attention/key", f"{_THEIR_TEXT}.self_attn.k_proj"),
    *_linear(f"{_TEXT}/attention/value", f"{_THEIR_TEXT}.self_attn.v_proj"),
    *_linear(f"{_TEXT}/attention/out", f"{_THEIR_TEXT}.self_attn.o_proj", in_axes=2),
    *_linear(f"{_TEXT}/mlp/gate", f"{_THEIR_TEXT}.mlp.gate_proj"),
    *_linear(f"{_TEXT}/mlp/up", f"{_THEIR_TEXT}.mlp.up_proj"),
    *_linear(f"{_TEXT}/mlp/down", f"{_THEIR_TEXT}.mlp.down_proj"),
    *_norm("decoder/norm", "language_model.model.norm"),
    *_linear("decoder/head", "language_model.lm_head"),
]

RULES: list[Rule] = [*VISION, *CONNECTOR, *QWEN2]


def hub_name(key: str) -> str:
    """The name that `save_pretrained` writes for a key in its style or the in-memory one (`model.vision_tower.*`)."""
    if key == "lm_head.weight":
        return "language_model.lm_head.weight"
    key = re.sub(r"^model\.language_model\.", "language_model.model.", key)
    return re.sub(r"^model\.(?=vision_tower\.|multi_modal_projector\.)", "", key)


def to_hf_config(system: System, *, image_id: int, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
    """`config.json` of a system.

    Besides what `transformers` reads, it holds two entries that only we read: `template` and the vision encoder's
    `drop_path_rate` (named as in InternVL's original config), so that a folder says all of its `System`.

    Args:
      system: what to describe.
      image_id: id of `<IMG_CONTEXT>`.
      stop_id: id of the token that ends a turn.
      pad_id: id of the padding token.
      dtype: of the weights, `float32` or `bfloat16`.

    Raises:
      UserError: naming every field that `transformers` has no counterpart for.
    """
    _check_expressible(system)
    vision, connector, decoder = system.model.vision, system.model.connector, system.model.decoder
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "internvl",
        "torch_dtype": dtype,
        "image_token_id": image_id,
        "image_seq_length": system.model.tokens_per_tile,
        "downsample_ratio": 1 / connector.factor,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": decoder.tie_embeddings,
        "template": system.template,
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp_width,
            "hidden_act": _ACTIVATIONS[vision.activation],
            "attention_bias": vision.qkv_bias,
            "use_qk_norm": vision.qk_norm == "full",
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "num_channels": 3,
            "layer_scale_init_value": vision.layer_scale,
            "drop_path_rate": vision.drop_path,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            # Makes the norm after the last layer an identity: InternViT has none.
            "use_mean_pooling": True,
            "attention_dropout": 0.0,
            "projection_dropout": 0.0,
            "hidden_dropout_prob": 0.0,
            "initializer_range": 0.02,
        },
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "torch_dtype": dtype,
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.width,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "intermediate_size": decoder.mlp_width,
            "hidden_act": _ACTIVATIONS[decoder.activation],
            "rms_norm_eps": decoder.norm_eps,
            "rope_theta": decoder.rope_theta,
            "max_position_embeddings": decoder.max_tokens,
            "tie_word_embeddings": decoder.tie_embeddings,
            "use_sliding_window": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": stop_id,
            "pad_token_id": pad_id,
        },
    }


def _check_expressible(system: System) -> None:
    vision, decoder = system.model.vision, system.model.decoder
    # What the classes of `transformers` fix in code.
    fixed = {
        "layout.thumbnail": (system.layout.thumbnail, True),
        "model.connector.norm_eps": (system.model.connector.norm_eps, 1e-5),
        "model.decoder.qkv_bias": (decoder.qkv_bias, True),
    }
    if vision.qk_norm == "full":
        fixed["model.vision.norm_eps"] = (vision.norm_eps, 1e-6)
    wrong = [f"{name} must be {needed!r}, is {value!r}" for name, (value, needed) in fixed.items() if value != needed]
    if wrong:
        raise UserError(f"this system has no counterpart in transformers' InternVL with Qwen2: {'; '.join(wrong)}")


def from_hf_config(config: Mapping[str, Any], images: Mapping[str, Any], where: str = "config.json") -> System:
    """The system that `config.json` and the image processor's settings describe; sizes come from there alone.

    Args:
      config: contents of `config.json`, in the style of `transformers` 4.52 to 5.x.
      images: settings of the image processor (`preprocessor_config.json`).
      where: what to call the file in errors.

    Raises:
      UserError: naming every field with a value that this code does not have, or that is missing.
    """
    if config.get("model_type") != "internvl" or config.get("text_config", {}).get("model_type") != "qwen2":
        kinds = f"{config.get('model_type')!r} with text {config.get('text_config', {}).get('model_type')!r}"
        raise UserError(f"{where}: model_type is {kinds}; supported here: 'internvl' with text 'qwen2'")
    fields = _Fields(config, where)
    vision = fields.part("vision_config")
    text = fields.part("text_config")
    fields.need("projector_hidden_act", "gelu", "gelu")
    fields.need("vision_feature_layer", -1, -1)
    fields.need("vision_feature_select_strategy", "default", "default")
    for name, default in (("use_absolute_position_embeddings", True), ("use_mask_token", False)):
        vision.need(name, default, default)
    vision.need("use_mean_pooling", True, True)
    vision.need("num_channels", 3, 3)
    text.need("use_sliding_window", False, False)
    ratio = fields.get("downsample_ratio", 0.5)
    model = VLMConfig(
        vision=_vision(vision),
        connector=PixelShuffleMLPConfig(factor=round(1 / ratio)),
        decoder=_qwen2(text, tied=config.get("tie_word_embeddings")),
    )
    crop = images.get("crop_to_patches", True)
    layout = ClosestAspect(
        tile_size=model.vision.image_size,
        min_tiles=images.get("min_patches", 1) if crop else 1,
        max_tiles=images.get("max_patches", 12) if crop else 1,
    )
    fields.finish()
    return System(model=model, layout=layout, template=config.get("template", TEMPLATE_OF_RELEASES))


def _vision(fields: _Fields) -> VisionConfig:
    return VisionConfig(
        image_size=fields.square("image_size"),
        patch_size=fields.square("patch_size"),
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        mlp_width=fields["intermediate_size"],
        norm=fields.choice("norm_type", {"layer_norm": "layer_norm", "rms_norm": "rms_norm"}),
        norm_eps=float(fields["layer_norm_eps"]),
        activation=fields.activation("hidden_act"),
        qkv_bias=fields["attention_bias"],
        qk_norm="full" if fields["use_qk_norm"] else "none",
        layer_scale=float(fields["layer_scale_init_value"]),
        drop_path=float(fields.get("drop_path_rate", 0.0)),
    )


def _qwen2(fields: _Fields, tied: bool | None) -> DecoderConfig:
    # transformers 5 moves the rotary settings into one dict; before, they were two flat entries.
    rope = fields.get("rope_parameters", None) or {"rope_theta": fields.get("rope_theta", 10000.0)}
    scaling = fields.get("rope_scaling", None) or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        fields.problems.append(f"{fields.name}rope scaling must be 'default', is {kind!r}")
    # The whole model's entry decides; where a folder leaves it out, the decoder's own does.
    own = fields.get("tie_word_embeddings", None)
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        kv_heads=fields["num_key_value_heads"],
        head_dim=fields.get("head_dim", None) or fields["hidden_size"] // fields["num_attention_heads"],
        mlp_width=fields["intermediate_size"],
        activation=fields.activation("hidden_act"),
        norm_eps=float(fields["rms_norm_eps"]),
        qkv_bias=True,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        tie_embeddings=bool(own if tied is None else tied),
        max_tokens=fields["max_position_embeddings"],
    )


class _Fields:
    """Looks fields of a config up and collects what is wrong with them, so that one error tells all."""

    def __init__(self, config: Mapping[str, Any], where: str, name: str = "") -> None:
        self.config, self.where, self.name = config, where, name
        self.problems: list[str] = []

    def part(self, name: str) -> _Fields:
        if not isinstance(self.config.get(name), Mapping):
            raise UserError(f"{self.where}: '{name}' is missing")
        part = _Fields(self.config[name], self.where, f"{self.name}{name}.")
        part.problems = self.problems  # one list for the whole config
        return part

    def get(self, name: str, default: Any) -> Any:
        return self.config.get(name, default)

    def __getitem__(self, name: str) -> Any:
        if self.config.get(name) is None:
            self.problems.append(f"{self.name}{name} is missing")
            self.finish()
        return self.config[name]

    def need(self, name: str, value: Any, default: Any) -> None:
        found = self.config.get(name, default)
        if found != value:
            self.problems.append(f"{self.name}{name} must be {value!r}, is {found!r}")

    def choice(self, name: str, known: Mapping[str, Any]) -> Any:
        value = self[name]
        if value not in known:
            self.problems.append(f"{self.name}{name} must be one of {', '.join(known)}, is {value!r}")
            self.finish()
        return known[value]

    def activation(self, name: str) -> Any:
        return self.choice(name, {theirs: ours for ours, theirs in _ACTIVATIONS.items()})

    def square(self, name: str) -> int:
        value = self[name]
        sides = value if isinstance(value, list | tuple) else [value, value]
        if len(set(sides)) != 1:
            self.problems.append(f"{self.name}{name} must be square, is {value!r}")
        return sides[0]

    def finish(self) -> None:
        if self.problems:
            raise UserError(f"{self.where}: {'; '.join(self.problems)}")
