"""Objectives: what a stage minimises. Each is a class with a `type`; the loop knows none of them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vlm_jax.batch import Batch
from vlm_jax.config import config_class
from vlm_jax.models.connector import ConnectorConfig
from vlm_jax.models.layers import Compute
from vlm_jax.models.vision_transformer import VisionConfig, VisionTransformer
from vlm_jax.models.vlm import PARTS, VLM, VLMConfig, head
from vlm_jax.training.loss import cross_entropy, next_token_targets

Params = Mapping[str, Any]
Sums = dict[str, jax.Array]

Speaker = Literal["student", "teacher"]
"""Whose encoder and connector stand before the decoder."""


@config_class
class TeacherConfig:
    """A larger vision encoder with a connector of its own; it speaks through the student's decoder."""

    vision: VisionConfig
    connector: ConnectorConfig


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of a recipe: the student (what is exported), the teacher if any, and how they compute."""

    student: VLMConfig
    teacher: TeacherConfig | None
    compute: Compute

    def with_drop_path(self, rate: float | None) -> Models:
        """The same models, the student's encoder with another drop-path rate; its own where `rate` is None."""
        if rate is None:
            return self
        vision = dataclasses.replace(self.student.vision, drop_path=rate)
        return dataclasses.replace(self, student=dataclasses.replace(self.student, vision=vision))

    @property
    def unused(self) -> tuple[str, ...]:
        """Globs of parameters that no forward pass reads: they are held for their release's sake, and never trained."""
        towers = {"vision": self.student.vision}
        if self.teacher is not None:
            towers["teacher/vision"] = self.teacher.vision
        return tuple(f"{part}/{glob}" for part, vision in towers.items() for glob in vision.unused)

    def vlm(self, speaker: Speaker, params: Params) -> tuple[VLMConfig, Params]:
        """The student or the teacher as a whole model, and its own of the run's parameters."""
        if speaker == "teacher":
            return self.teacher_vlm, {**params["teacher"], "decoder": params["decoder"]}
        return self.student, {part: params[part] for part in PARTS if part in params}

    @property
    def teacher_vlm(self) -> VLMConfig:
        """The teacher's encoder and connector in front of the student's decoder."""
        assert self.teacher is not None
        return VLMConfig(vision=self.teacher.vision, connector=self.teacher.connector, decoder=self.student.decoder)


@config_class
class GenerateObjective:
    """Next-token cross-entropy over the supervised tokens: the generative task of every VLM stage.

    Attributes:
      model: whether the student's or the teacher's encoder and connector see the image.
    """

    type: Literal["generate"] = "generate"
    model: Speaker = "student"

    @property
    def speaker(self) -> Speaker | None:
        """The model that has learned to answer when the stage ends; None where none has."""
        return self.model

    @property
    def parts(self) -> tuple[str, ...]:
        """Prefixes of the parameters that this objective reads."""
        return ("decoder", "teacher") if self.model == "teacher" else PARTS

    def init(self, models: Models, key: jax.Array) -> dict[str, Any]:
        """No parameters of its own."""
        del models, key
        return {}

    def __call__(
        self, models: Models, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns the weighted sum of losses, and sums to report (`weight` divides the loss)."""
        config, params = models.vlm(self.model, params)
        hidden = VLM(config, models.compute).apply({"params": params}, batch, key, method="hidden")
        targets, weights = next_token_targets(batch)
        kernel, bias = head(params, config.decoder)
        loss, right = cross_entropy(hidden, kernel, targets, weights, bias=bias)
        return loss, {"weight": jnp.sum(weights), "right": right}


@config_class
class DistillObjective:
    """Negative cosine similarity between student and teacher hidden states of the last layers (paper, section 3.1).

    The paper publishes neither the number of layers nor how the widths are matched. Our choice: one trainable linear
    projection per matched layer from the student's width to the teacher's, dropped at export; class and patch tokens
    alike (patch tokens alone if one of the two has no class token); the mean over tokens of real tiles, then over
    layers.

    Attributes:
      layers: how many of the last layers are matched, one to one from the end (the paper's K).
    """

    type: Literal["distill"] = "distill"
    layers: int = 4

    @property
    def speaker(self) -> Speaker | None:
        """None: the encoder changes under a connector and a decoder that have yet to get used to it."""
        return None

    @property
    def parts(self) -> tuple[str, ...]:
        """Prefixes of the parameters that this objective reads."""
        return ("vision", "teacher", "distillation")

    def init(self, models: Models, key: jax.Array) -> dict[str, Any]:
        """The projections, under `distillation/<layer from the end>/`."""
        assert models.teacher is not None
        wide, narrow = models.teacher.vision.width, models.student.vision.width
        keys = jax.random.split(key, self.layers)
        kernel = jax.nn.initializers.lecun_normal()
        projections = {str(i): {"kernel": kernel(keys[i], (narrow, wide)), "bias": jnp.zeros(wide)}
                       for i in range(self.layers)}  # fmt: skip
        return {"distillation": projections}

    def __call__(
        self, models: Models, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns the sum of losses over real tiles, and sums to report."""
        assert models.teacher is not None
        tiles = rearrange(batch.patches, "b k n p -> (b k) n p")
        real = (batch.tile_grid[..., 0] > 0).reshape(-1).astype(jnp.float32)
        small, large = models.student.vision, models.teacher.vision
        student = self._states(small, models.compute, params["vision"], tiles, key)
        teacher = self._states(large, models.compute, params["teacher"]["vision"], tiles, None)
        if small.class_token != large.class_token:
            student = [state[:, small.first_patch :] for state in student]
            teacher = [state[:, large.first_patch :] for state in teacher]
        loss = jnp.zeros((), jnp.float32)
        for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
            p = params["distillation"][str(i)]
            projected = s @ p["kernel"].astype(s.dtype) + p["bias"].astype(s.dtype)
            similarity = cosine(projected, jax.lax.stop_gradient(t))
            loss = loss - jnp.sum(real * jnp.mean(similarity, axis=1)) / self.layers
        return loss, {"weight": jnp.sum(real)}

    def _states(
        self, config: VisionConfig, compute: Compute, params: Params, tiles: jax.Array, key: jax.Array | None
    ) -> list[jax.Array]:
        encoder = VisionTransformer(config, compute)
        return encoder.apply({"params": params}, tiles, drop_key=key, capture=self.layers)[1][::-1]


def cosine(a: Float[Array, "M N D"], b: Float[Array, "M N D"]) -> Float[Array, "M N"]:
    """Cosine similarity over the last axis, in float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-6)
