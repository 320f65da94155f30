"""A system: which model, how images are laid out for it, and how it is spoken to."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.config import config_class, one_of
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.native import NativeRaster
from vlm_jax.data.layouts.single import Single
from vlm_jax.data.prepare import LossReduction, Preparer
from vlm_jax.data.text.templates import TEMPLATES, Template
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig

LayoutConfig = one_of(ClosestAspect, Single, AnyRes, NativeRaster)


@config_class
class System:
    """Everything that must be the same in training, evaluation, chat and export.

    Attributes:
      model: vision encoder, connector and decoder.
      layout: how an image becomes tiles, and where their visual tokens stand.
      template: name of the chat template (`vlm_jax.data.text.templates.TEMPLATES`).
      system_prompt: what the model is told first, where that is not the chat template's own text: releases that share
        a prompt format were trained with different ones.
    """

    model: VLMConfig
    layout: LayoutConfig
    template: str = "internvl2"
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        vision = self.model.vision
        self.layout.check(vision.image_size, vision.patch_size, vision.patches)
        if self.layout.vectors != self.model.vectors:
            raise UserError(
                f"config.system.layout has the learned vectors ({', '.join(self.layout.vectors)}), "
                f"config.system.model.vectors are ({', '.join(self.model.vectors)}): they must be equal"
            )
        if self.template not in TEMPLATES:
            raise UserError(f"config.system.template: no template '{self.template}'; there are {', '.join(TEMPLATES)}")

    @property
    def chat_template(self) -> Template:
        """The prompt format, with this system's own text."""
        template = TEMPLATES[self.template]
        return template if self.system_prompt is None else dataclasses.replace(template, system=self.system_prompt)

    def resized(self, side: int) -> System:
        """The same system for tiles of `side` pixels; its parameters differ in the tables of positions alone.

        Raises:
          UserError: the parts do not allow it.
        """
        model = dataclasses.replace(self.model, vision=self.model.vision.resized(side))
        return dataclasses.replace(self, model=model, layout=self.layout.resized(side))

    def grid(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """Tiles across and down (no thumbnail) of a picture of so many pixels, one of `images` of its conversation."""
        return self.layout.among(images).grid(width, height)

    def tiles(self, image: Image.Image, images: int = 1) -> list[np.ndarray]:
        """A picture as the model sees it, tile by tile: uint8 [height, width, 3] each."""
        return self.layout.among(images).views(image)

    def preparer(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        max_tiles: int | None = None,
        loss_reduction: LossReduction = "token",
        *,
        training: bool = False,
    ) -> Preparer:
        """What turns a conversation into arrays for this system.

        Args:
          tokenizer: of the model.
          max_tokens: longest conversation.
          max_tiles: overrides the layout's (per benchmark).
          loss_reduction: see `Preparer`.
          training: what the layout draws for every conversation is drawn; outside of training it is not.
        """
        layout = self.layout if training else self.layout.settled()
        if max_tiles is not None:
            layout = layout.at_most(max_tiles)
        return Preparer(
            tokenizer=tokenizer,
            template=self.chat_template,
            layout=layout,
            patch_size=self.model.vision.patch_size,
            tokens_per_tile=self.model.tokens_per_tile,
            max_tokens=max_tokens,
            loss_reduction=loss_reduction,
        )
