import io

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training.helpers import Memory, recipe_fields, start
from vlm_jax.config import build
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.training.data import Splits
from vlm_jax.training.loop import initial_params
from vlm_jax.training.recipe import Recipe


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return build(Recipe, recipe_fields())


@pytest.fixture(scope="session")
def params(recipe):
    return jax.jit(lambda: initial_params(recipe))()


@pytest.fixture(scope="session")
def splits():
    rng = np.random.default_rng(0)

    def record(i):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (10 + i % 5, 16, 3), dtype=np.uint8)).save(file, "PNG")
        turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "ab" * (i % 4)))
        return Conversation(turns, (file.getvalue(),), f"r{i}", "a")

    records = Memory(record(i) for i in range(40))
    return Splits(records, records, records)


@pytest.fixture(scope="session")
def tokenizer():
    system = (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
    )
    return Tokenizer.train([system, "user\nWhat?", "assistant\nabab"] * 5, 500 - 13)


@pytest.fixture(scope="session")
def small():
    fields = recipe_fields(runtime=dict(checkpoint_seconds=0.0, keep_checkpoints=3))
    fields["system"]["model"]["decoder"]["vocab_size"] = 500
    for stage in fields["stages"]:
        stage["data"] = dict(rows=8, tokens=64, tiles=4)
    fields["stages"][1]["optimizer"]["type"] = "muon"
    return build(Recipe, fields)


@pytest.fixture(scope="session")
def unbroken(small, splits, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return start(small, folder, splits, tokenizer), folder
