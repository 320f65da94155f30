import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vlm_jax
from tests import tiny
from vlm_jax import UserError
from vlm_jax.checkpoints import Checkpoints
from vlm_jax.config import to_plain
from vlm_jax.convert.folders import write_folder
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.inference.model import Model, read_picture, with_marks
from vlm_jax.inference.session import ChatSession

PROMPT = "Image-1: <image>\nImage-2: <image>\nWhich is brighter?"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run whose last checkpoint is `tiny`'s and whose export holds other numbers."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"system": to_plain(tiny.system())}))
    tiny.tokenizer().save(folder / "tokenizer")
    saver = Checkpoints(folder / "checkpoints")
    for number, params in ((1, tiny.perturbed(tiny.params(), 8)), (2, tiny.params())):
        saver.save(number, params, {"m": np.ones(1)}, {})
    saver.close()
    write_folder(folder / "export", tiny.perturbed(tiny.params(), 9), tiny.system(), tiny.tokenizer())
    return folder


def embedding(model):
    return np.asarray(model.params["decoder"]["embedding"])


def test_load_finds_out_what_a_folder_is(workdir, tmp_path):
    np.testing.assert_array_equal(embedding(vlm_jax.load(workdir)), tiny.params()["decoder"]["embedding"])
    exported = tiny.perturbed(tiny.params(), 9)["decoder"]["embedding"]
    np.testing.assert_array_equal(embedding(vlm_jax.load(workdir / "export")), exported)
    light = shutil.copytree(workdir, tmp_path / "light")
    shutil.rmtree(light / "checkpoints")
    np.testing.assert_array_equal(embedding(vlm_jax.load(light)), exported)
    shutil.rmtree(light / "export")
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        vlm_jax.load(light)
    with pytest.raises(UserError, match="there is no such folder"):
        vlm_jax.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"it has no config\.json"):
        vlm_jax.load(tmp_path)


def test_generate_takes_paths_bytes_and_pillow_images(tmp_path):
    first, second = tiny.conversations()[0].images
    (tmp_path / "a.png").write_bytes(first)
    pillow = Image.open(tmp_path / "a.png")
    said = {
        tiny.model().generate(PROMPT, images=images, max_new_tokens=8)
        for images in (
            [first, second],
            [tmp_path / "a.png", second],
            [str(tmp_path / "a.png"), second],
            [pillow, second],
        )
    }
    assert len(said) == 1
    assert said.pop()
    assert tiny.model().generate(PROMPT, [second, first], max_new_tokens=8) != said


def test_answers_come_in_order_and_equal_single_answers():
    with_images, text, _ = tiny.conversations()
    short = Conversation((Turn("user", "Which is brighter, 1 or 2?"),))
    conversations = [with_images, text, short, short, text, with_images]
    counted = []
    answers = tiny.model().answer(conversations, max_new_tokens=8, batch_size=2, progress=counted.append)
    assert answers[:3] == [tiny.model().reply(c.turns, c.images, max_new_tokens=8) for c in conversations[:3]]
    assert answers[3:] == answers[2::-1]
    assert len(set(answers)) == 3
    assert counted == [2, 2, 2]
    assert tiny.model().answer([]) == []


def test_max_tiles_reaches_the_tiling():
    large = tiny.conversations()[2]
    batches = [tiny.model().batch([large], max_tiles=tiles) for tiles in (None, 1)]
    assert [int((batch.tile_segment > 0).sum()) for batch in batches] == [5, 1]


def test_logits_of_whole_rows_equal_those_of_a_batch():
    """The shorthand: ids without padding, and tiles as pictures."""
    large = tiny.conversations()[2]
    batch = tiny.model().batch([large])
    tiles = tiny.system().layout.cut_tiles(decode_image(large.images[0], "x"))[None]
    expected = np.asarray(tiny.model().logits(batch))
    np.testing.assert_allclose(np.asarray(tiny.model().logits(batch.tokens, tiles)), expected, atol=1e-6)
    assert expected.shape == (*batch.tokens.shape, 337)
    assert expected.dtype == np.float32
    with pytest.raises(UserError, match="20 image tokens for 4 tiles of 4 tokens each"):
        tiny.model().logits(batch.tokens, tiles[:, :4])
    with pytest.raises(UserError, match="tiles have shape"):
        tiny.model().logits(batch.tokens, tiles[:, :, :16])


def test_batch_of_strings_and_separate_images():
    """The public shorthand makes what full conversations make."""
    first, second = tiny.conversations()[0].images
    given = tiny.model().batch(["Which?", "What is the total?"], [[first, second], []])
    marked = Conversation((Turn("user", "Image-1: <image>\nImage-2: <image>\nWhich?"),), (first, second))
    expected = tiny.model().batch([marked, tiny.conversations()[1]])
    for ours, theirs in zip(given[:-1], expected[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="images for 1 conversations, but there are 2"):
        tiny.model().batch(["a", "b"], [[]])


def test_generation_ends_with_the_context():
    limit = tiny.system().model.decoder.max_tokens
    words = 0
    while tiny.model().batch(["1 " * (words + 1)]).tokens.shape[1] < limit:
        words += 1
    room = limit - tiny.model().batch(["1 " * words]).tokens.shape[1]
    assert 1 <= room <= 2
    assert tiny.model().generate("1 " * words, max_new_tokens=50) == tiny.model().generate("1 " * words, (), room)
    with pytest.raises(UserError, match="longer than the context"):
        tiny.model().generate("1 " * (words + 60))


def test_mistakes_name_what_is_wrong(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(UserError, match=r"notes\.png: cannot read this image"):
        read_picture(tmp_path / "notes.png")
    with pytest.raises(UserError, match=r"none\.png: cannot read this image: No such file"):
        tiny.model().generate("x", [tmp_path / "none.png"])
    with pytest.raises(UserError, match="2 <image> mark"):
        tiny.model().generate("<image> <image>", [tiny.png(8, 8, 0)])
    with pytest.raises(UserError, match="max_new_tokens: must be at least 1"):
        tiny.model().generate("x", max_new_tokens=0)
    with pytest.raises(UserError, match="max_tiles: must be at least 1, got 0"):
        tiny.model().generate("x", max_tiles=0)
    with pytest.raises(UserError, match=r"the prompt is not valid Unicode text: 'caf\\udce9'"):
        tiny.model().generate("caf\udce9")
    with pytest.raises(UserError, match="cannot read this image: embedded null byte"):
        tiny.model().generate("x", ["a\0b"])
    broken = {**tiny.params(), "connector": {}}
    with pytest.raises(UserError, match="missing: connector/down/bias"):
        Model(tiny.system(), broken, tiny.tokenizer())


def test_marks():
    assert with_marks("Why?", 0) == "Why?"
    assert with_marks("Why?", 1) == "<image>\nWhy?"
    assert with_marks("Why?", 2) == "Image-1: <image>\nImage-2: <image>\nWhy?"
    assert with_marks("Why?", 2, numbered=False) == "<image>\n<image>\nWhy?"
    assert with_marks("Why <image>?", 1) == "Why <image>?"


def test_session_remembers():
    first, second = tiny.conversations()[0].images
    session = ChatSession(tiny.model(), max_new_tokens=4)
    session.pending.append(first)
    one = session.ask("Total?")
    session.pending.append(second)
    two = session.ask("Which?")
    turns = (Turn("user", "<image>\nTotal?"), Turn("assistant", one), Turn("user", "<image>\nWhich?"))
    assert two == tiny.model().reply(turns, [first, second], max_new_tokens=4)
    before = list(session.turns)
    with pytest.raises(UserError):
        session.ask("<image>")
    assert session.turns == before
    session.reset()
    assert (session.turns, session.images, session.pending) == ([], [], [])
