"""No vision encoder at all: every patch goes through one linear layer (Fuyu's `vision_embed_tokens`)."""

from __future__ import annotations

from typing import ClassVar, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float, UInt8

from vlm_jax.config import config_class
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Compute, Linear
from vlm_jax.models.vision_transformer import normalise
from vlm_jax.sharding import constrain


@config_class
class PatchProjectionConfig:
    """A linear layer from the pixels of a patch. The defaults are Fuyu-8B's.

    Attributes:
      patch_size: side of a patch in pixels.
      width: of what comes out.
      patches: of a tile slot (N); they do not know of one another, so any number will do.
      mean, std: of each channel, for pixels in 0..1.
    """

    type: Literal["patch_projection"] = "patch_projection"
    patch_size: int = 30
    width: int = 4096
    patches: int = 64
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    image_size: ClassVar[None] = None
    first_patch: ClassVar[int] = 0
    drop_path: ClassVar[float] = 0.0
    unused: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "patches"):
            if getattr(self, name) < 1:
                raise UserError(f"vision.{name}: must be positive, got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise UserError(f"vision.std: must be positive, got {self.std}")

    def resized(self, side: int) -> PatchProjectionConfig:
        """Itself: patches know nothing of images."""
        del side
        return self

    def module(self, compute: Compute) -> PatchProjection:
        """The network."""
        return PatchProjection(self, compute)


class PatchProjection(nn.Module):
    """Patches in, one vector for each out."""

    config: PatchProjectionConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, patches: UInt8[Array, "M N PP3"], *, drop_key: jax.Array | None = None, capture: int = 0
    ) -> tuple[Float[Array, "M N D"], list[jax.Array]]:
        """As `VisionTransformer`; there are no layers to drop or to capture."""
        assert not capture, "there are no layers"
        del drop_key
        x = normalise(patches, self.config.mean, self.config.std)
        x = Linear((self.config.width,), dtype=self.compute.dtype, name="patch_embedding")(x)
        return constrain(x, "batch", None, None), []
