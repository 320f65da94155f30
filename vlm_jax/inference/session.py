"""A chat with memory: earlier turns and their images are part of every new prompt."""

from __future__ import annotations

from pathlib import Path

from vlm_jax.data.conversation import Turn
from vlm_jax.inference.generate import GREEDY, Sampling
from vlm_jax.inference.model import Model, read_picture


class ChatSession:
    """One conversation with a model.

    Attributes:
      turns: what was said so far.
      images: the images of these turns, in order, as the bytes of their files.
      pending: images that will stand before the next question.
    """

    def __init__(
        self,
        model: Model,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        max_tiles: int | None = None,
    ) -> None:
        """Starts an empty conversation; the arguments are those of `Model.generate`."""
        self._model, self._max_new_tokens = model, max_new_tokens
        self._sampling, self._max_tiles = sampling, max_tiles
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.turns: list[Turn] = []
        self.images: list[bytes] = []
        self.pending: list[bytes] = []

    def show(self, path: str | Path) -> None:
        """Puts an image before the next question.

        Raises:
          UserError: naming the file that cannot be read as an image.
        """
        self.pending.append(read_picture(path))

    def ask(self, question: str) -> str:
        """Answers, and remembers question and answer. After an error nothing has changed.

        Raises:
          UserError: as `Model.generate`.
        """
        images = self.images + self.pending
        turns = [*self.turns, Turn("user", self._model.with_marks(question, len(self.pending)))]
        answer = self._model.reply(turns, images, self._max_new_tokens, self._sampling, self._max_tiles)
        self.turns, self.images, self.pending = [*turns, Turn("assistant", answer)], images, []
        return answer
