import io

import numpy as np
import pytest
from PIL import Image

from tests.data.bad_records import write_bad_meta
from vlm_jax.data import check
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError

TEXTS = [
    "system user assistant What is the total of this receipt? The total is 128.50. Read the digit in row 2, column 3.",
    "How many zebras are there? There are 17 zebras. Which bar is highest? <ref>a dog</ref><box>[[1, 2, 3, 4]]</box>",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 420)


@pytest.fixture(scope="session")
def png():
    def make(width: int, height: int, seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def preparer(tokenizer) -> Preparer:
    """Tiles of 28 px in patches of 14 px, two visual tokens a tile."""
    return Preparer(
        tokenizer=tokenizer,
        template=TEMPLATES["internvl2"],
        layout=ClosestAspect(tile_size=28, max_tiles=4),
        patch_size=14,
        tokens_per_tile=2,
        max_tokens=400,
    )


@pytest.fixture(scope="session")
def conversations(png) -> list[Conversation]:
    """Sixty records of tasks a (40) and b (20), with none, one or two images of several shapes."""
    records = []
    for number in range(60):
        images = tuple(png(20 + 7 * (number % 5), 30, number + i) for i in range(number % 3))
        question = "<image>\n" * len(images) + f"What is {number} times {number}?" + " Why?" * (number % 7)
        answer = "because " * (number % 4) + f"{number * number}"
        turns = (Turn("user", question), Turn("assistant", answer))
        records.append(Conversation(turns, images, f"r{number}", "b" if number % 3 == 2 else "a"))
    return records


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    """A data set with everything that can be wrong: the meta file, and the reason by line of captions.jsonl."""
    return write_bad_meta(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in a fresh folder; gives its exit code (or the `UserError`'s text) and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = check.main([str(argument) for argument in arguments])
        except UserError as error:
            code = str(error)
        return code, capsys.readouterr().out

    return run
