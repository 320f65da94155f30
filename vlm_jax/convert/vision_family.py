"""What a kind of vision tower is to the converter: names of tensors, meaning of its config, what is left out."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from vlm_jax.convert.fields import Fields, activation_name
from vlm_jax.convert.table import Rule, norm
from vlm_jax.errors import UserError
from vlm_jax.models.vision_transformer import VisionConfig

_NOT_THE_TOWERS = {"mean", "std", "drop_path", "position_waves", "feature_layer", "final_norm", "pooling_norm"}
"""Fields that a tower's `config.json` does not hold: pixel statistics stand beside it, the rest is how a system trains
the tower and what it takes from it. That there is a norm behind the last layer is part of the tower."""


@dataclasses.dataclass(frozen=True)
class VisionFamily:
    """One kind of vision tower as others store it in a folder of its own.

    Attributes:
      model_types: `model_type` of its `config.json` -> the entry that describes the tower, "" for the whole file.
      rules: the weight table; keys without `prefix`.
      read: from the fields of that entry, `defaults` filled in, to our config; problems are noted in the fields.
      write: the inverse, as the `config.json` of a folder with the tower alone in such a dtype; of a tower that is none
        of the family it may write anything (`write_config` finds out).
      write_processor: `preprocessor_config.json` of such a folder.
      prefix: what keys may begin with, because a larger model holds the tower.
      own_prefix: what keys begin with in a folder with the tower alone, in every `transformers` from 4.52 on.
      left_out: patterns (`*` is anything) of stored tensors that the tower does not need, without `prefix`. All other
        tensors must be used.
      sized_by_processor: whether the size of image that the image processor makes goes before that of `config.json`.
        False where the reference resizes its table at every call, so that the two differ and the table should stay.
      defaults: values of fields that a folder may leave out, because the config class of its code has them.
    """

    model_types: Mapping[str, str]
    rules: list[Rule]
    read: Callable[[Fields], VisionConfig]
    write: Callable[[VisionConfig, str], dict[str, Any]]
    write_processor: Callable[[VisionConfig], dict[str, Any]]
    prefix: str = ""
    own_prefix: str = ""
    left_out: tuple[str, ...] = ()
    sized_by_processor: bool = True
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rename(self, key: str) -> str:
        """A stored key as the table has it."""
        return key.removeprefix(self.prefix)

    def leaves_out(self, key: str) -> bool:
        """Whether the tower has no use for the tensor of this (renamed) key."""
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in self.left_out)

    def read_config(self, config: Mapping[str, Any], where: str) -> VisionConfig:
        """The tower that a `config.json` with one of `model_types` describes.

        Raises:
          UserError: naming every field with a value that this code does not have.
        """
        name = self.model_types[config["model_type"]]
        fields = Fields(config, where)
        if name:
            fields = fields.part(name)
        # Releases of 2022 say it twice, and `transformers` takes the second.
        given = config.get(f"{name}_dict") or fields.config
        known = {key: value for key, value in given.items() if value is not None}
        fields = Fields({**self.defaults, **known}, where, fields.name)
        vision = self.read(fields)
        fields.finish()
        return vision

    def write_config(self, vision: VisionConfig, dtype: str) -> dict[str, Any]:
        """`config.json` of a folder that holds the tower alone; also its entry in that of a larger model.

        It says nothing of pixel statistics, of drop path and of which hidden state is handed on.

        Raises:
          UserError: the tower is none of this family, naming every field that `read_config` would find another.
        """
        config = self.write(vision, dtype)
        again = self.read_config(config, "config.json")
        names = {field.name for field in dataclasses.fields(VisionConfig)} - _NOT_THE_TOWERS
        wrong = {name: (getattr(vision, name), getattr(again, name)) for name in sorted(names)}
        wrong["final_norm or pooling_norm"] = (bool(vision.last_norm), bool(again.last_norm))
        told = [f"{name} must be {theirs!r}, is {ours!r}" for name, (ours, theirs) in wrong.items() if ours != theirs]
        if told:
            raise UserError(f"model.vision cannot be stored as a {config['model_type']}: {'; '.join(told)}")
        return config


def last_norm(key: str) -> list[Rule]:
    """The norm behind the last layer, whether features pass it or not."""
    return [*norm("vision/final_norm", key), *norm("vision/pooling_norm", key)]


def read_transformer(fields: Fields, **fixed: Any) -> VisionConfig:
    """The fields that all families name alike, and besides them what the code of one family fixes."""
    fields.need("num_channels", 3, 3)
    mlp_width = fixed.pop("mlp_width", None) or fields.count("intermediate_size")
    return VisionConfig(
        image_size=fields.square("image_size"),
        patch_size=fields.square("patch_size"),
        width=fields.count("hidden_size"),
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        mlp_width=mlp_width,
        norm_eps=fields.number("layer_norm_eps"),
        activation=fields.activation("hidden_act"),
        **fixed,
    )


def write_transformer(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """The inverse of `read_transformer`, except for the width of the MLPs."""
    return {
        "torch_dtype": dtype,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "hidden_act": activation_name(vision.activation),
        "layer_norm_eps": vision.norm_eps,
    }


def write_processor(kind: str, vision: VisionConfig, *, crop: bool) -> dict[str, Any]:
    """`preprocessor_config.json` for an image processor of `transformers`.

    Args:
      kind: its class.
      vision: size, mean and standard deviation.
      crop: resize the shorter side and cut the middle out, as CLIP does it; else resize both sides.
    """
    square = {"height": vision.image_size, "width": vision.image_size}
    size = {"shortest_edge": vision.image_size} if crop else square
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        **({"do_center_crop": True, "crop_size": square} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "resample": 3,  # bicubic
    }
