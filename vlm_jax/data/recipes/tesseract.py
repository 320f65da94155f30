"""Words of a picture by Tesseract, the program, which the system's packages have (`tesseract-ocr`)."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Sequence

from PIL import Image

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.recipes.ocr_words import Word, words_from_tsv
from vlm_jax.errors import UserError

SHORT_SIDE = 384
"""Pixels that a picture's short side is shrunk to before it is read: what LLaVAR's encoder could not see either is not
transcribed (arXiv 2306.17107, section 3.1)."""

_PATIENCE = 120.0  # seconds for one picture


def find_tesseract() -> str:
    """Path of the program.

    Raises:
      UserError: it is not installed.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise UserError(
            "tesseract: not found; install the package tesseract-ocr (apt-get install tesseract-ocr), or give words "
            "that another OCR found, with --words"
        )
    return program


def shrink(image: Image.Image, short_side: int = SHORT_SIDE) -> Image.Image:
    """A picture whose short side has at most so many pixels; the other one keeps its share, and is at least 1."""
    shortest = min(image.size)
    if not short_side or shortest <= short_side:
        return image
    width, height = (max(1, round(side * short_side / shortest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def read_words(
    image: Image.Image,
    place: str,
    *,
    program: str = "tesseract",
    options: Sequence[str] = ("-l", "eng", "--psm", "3"),
    short_side: int = SHORT_SIDE,
    min_confidence: float = 0.0,
) -> list[Word]:
    """The words of a picture, with places in its own pixels.

    Args:
      image: of mode RGB or L.
      place: what to call it in an error.
      program: from `find_tesseract`.
      options: of the program, as language and page segmentation mode.
      short_side: see `shrink`; 0 reads the picture as it is.
      min_confidence: in percent.

    Raises:
      RecordError: Tesseract could not read this picture.
      UserError: it does not know an option or a language.
    """
    file = io.BytesIO()
    small = shrink(image, short_side)
    small.save(file, "PNG")
    command = [program, "stdin", "stdout", *options, "tsv"]
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}  # pictures are read side by side
    try:
        done = subprocess.run(
            command, input=file.getvalue(), capture_output=True, env=environment, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise RecordError(place, "image", f"tesseract took more than {_PATIENCE:g} seconds") from None
    except OSError as error:
        raise UserError(f"{program}: cannot be started: {error.strerror}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        if "language" in said or "page segmentation" in said or "command line" in said:
            raise UserError(f"tesseract {' '.join(options)}: {said}")
        raise RecordError(place, "image", f"tesseract failed: {said or done.returncode}")
    words = words_from_tsv(done.stdout.decode("utf-8", "replace"), place, min_confidence)
    across, down = image.width / small.width, image.height / small.height
    return [
        word._replace(x=word.x * across, y=word.y * down, width=word.width * across, height=word.height * down)
        for word in words
    ]
