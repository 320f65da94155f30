"""What a kind of vision tower is to the converter: names of tensors, meaning of its config, what is left out."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from vlm_jax.convert.fields import Fields
from vlm_jax.convert.table import Rule
from vlm_jax.models.vision_transformer import VisionConfig


@dataclasses.dataclass(frozen=True)
class VisionFamily:
    """One kind of vision tower as others store it in a folder of its own.

    Attributes:
      model_types: `model_type` of its `config.json` -> the entry that describes the tower, "" for the whole file.
      rules: the weight table; keys without `prefix`.
      read: from the fields of that entry, `defaults` filled in, to our config; problems are noted in the fields.
      prefix: what keys begin with where the tower is stored inside a larger model.
      left_out: patterns (`*` is anything) of stored tensors that the tower does not need, without `prefix`. All other
        tensors must be used.
      defaults: values of fields that a folder may leave out, because the config class of its code has them.
    """

    model_types: Mapping[str, str]
    rules: list[Rule]
    read: Callable[[Fields], VisionConfig]
    prefix: str = ""
    left_out: tuple[str, ...] = ()
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


def read_transformer(fields: Fields, **fixed: Any) -> VisionConfig:
    """The fields that all families name alike, and besides them what the code of one family fixes."""
    fields.need("num_channels", 3, 3)
    return VisionConfig(
        image_size=fields.square("image_size"),
        patch_size=fields.square("patch_size"),
        width=fields.count("hidden_size"),
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        mlp_width=fields.count("intermediate_size"),
        norm_eps=fields.number("layer_norm_eps"),
        activation=fields.activation("hidden_act"),
        **fixed,
    )
