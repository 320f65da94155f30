import dataclasses

import numpy as np
import pytest

from vlm_jax.data.augment import reencode
from vlm_jax.data.conversation import Conversation, RecordError, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.native import NativeRaster
from vlm_jax.data.layouts.patches import patchify, unpatchify
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def conversation(png):
    turns = (
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", "A zebra."),
        Turn("user", "And <image>?"),
        Turn("assistant", "Two."),
    )
    return Conversation(turns, (png(56, 28, 1), png(28, 28, 2)), "z1", "t")


def test_weights_are_on_the_answers_and_their_stop_tokens(preparer, conversation):
    example = preparer(conversation)
    tokenizer = preparer.tokenizer
    supervised = example.tokens[example.loss_weights > 0]
    assert tokenizer.decode(supervised, skip_special=False) == "A zebra.<|im_end|>Two.<|im_end|>"
    assert set(example.loss_weights.tolist()) == {0.0, 1.0}
    # The first supervised token of each answer follows the answer's header.
    header = tokenizer.encode_pieces([("<|im_start|>assistant\n", True)])
    starts = np.flatnonzero(np.diff((example.loss_weights > 0).astype(int)) == 1) + 1
    assert len(starts) == 2
    for start in starts:
        assert example.tokens[start - len(header) : start].tolist() == header


@pytest.mark.parametrize(("reduction", "power"), [("token", 0), ("sample", 1), ("square", 0.5)])
def test_weights_per_conversation(preparer, conversation, reduction, power):
    example = dataclasses.replace(preparer, loss_reduction=reduction)(conversation)
    weights = example.loss_weights[example.loss_weights > 0]
    np.testing.assert_allclose(weights, len(weights) ** -power, rtol=1e-6)
    assert weights.dtype == np.float32


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
def test_a_branch_is_the_conversation_that_it_would_be_alone(preparer, png, reduction):
    preparer = dataclasses.replace(preparer, loss_reduction=reduction)
    pairs = [("What is it?", "A zebra."), ("Sure?", "Yes."), ("How many are there?", "17 zebras there.")]
    images = (png(56, 28, 1),)
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns[0] = Turn("user", "<image>\n" + pairs[0][0])
    together = preparer(Conversation(tuple(turns), images, "x", independent=True))
    for branch, (question, answer) in enumerate(pairs, start=1):
        turns = (Turn("user", "<image>\n" + question), Turn("assistant", answer))
        alone = preparer(Conversation(turns, images, "x"))
        seen = np.isin(together.branches, (0, branch))
        for name in ("tokens", "loss_weights", "visual", "positions"):
            np.testing.assert_array_equal(getattr(together, name)[seen], getattr(alone, name), err_msg=name)
        assert not alone.branches.any()
    assert together.branches.max() == len(pairs)
    np.testing.assert_array_equal(together.patches, alone.patches)


def test_tiles_and_visual_tokens(preparer, conversation):
    example = preparer(conversation)
    # Two images share four tiles: two each, so 2 x 1 and a thumbnail, and one tile (a square, at two tiles at most).
    layout = ClosestAspect(tile_size=28, max_tiles=2)
    pixels = [layout.cut_tiles(decode_image(data, "x")) for data in conversation.images]
    assert [len(tiles) for tiles in pixels] == [3, 1]
    np.testing.assert_array_equal(example.patches, patchify(np.concatenate(pixels), 14))
    assert example.tile_image.tolist() == [0, 0, 0, 1]
    assert example.tile_slot.tolist() == [0, 1, 2, 0]
    assert example.tile_grid.tolist() == [[2, 2]] * 4
    places = example.visual >= 0
    assert example.visual[places].tolist() == list(range(8))
    np.testing.assert_array_equal(places, example.tokens == preparer.tokenizer.token_id("<IMG_CONTEXT>"))


def test_tiles_need_not_be_shared(preparer, png):
    conversation = Conversation((Turn("user", "<image><image>"),), (png(112, 28), png(28, 28)), "x")
    assert preparer.measure(conversation)[1] == 3 + 1
    assert dataclasses.replace(preparer, share_tiles=False).measure(conversation)[1] == 5 + 1


def test_measure_equals_the_example(preparer, conversations):
    for conversation in conversations[:12]:
        example = preparer(conversation)
        assert preparer.measure(conversation)[:2] == (len(example.tokens), len(example.patches))


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_a_long_conversation_is_cut_behind_its_images(preparer, conversation, reduction):
    preparer = dataclasses.replace(preparer, loss_reduction=reduction, too_long="truncate")
    whole, size = preparer(conversation), preparer.measure(conversation)
    end = preparer.tokenizer.encode_pieces([("</img>", True)])[0]
    assert size.least == np.flatnonzero(whole.tokens == end)[-1] + 1  # the second image stands behind an answer
    for limit in range(size.least - 3, size.tokens + 2):
        short = dataclasses.replace(preparer, max_tokens=limit)
        if limit < size.least:
            with pytest.raises(
                RecordError, match=rf"^record z1: cannot be cut: the first {size.least} of its"
            ) as caught:
                short(conversation)
            assert caught.value.reason == "too long"
            continue
        cut = short(conversation)
        assert len(cut.tokens) == min(limit, size.tokens)
        for name in ("tokens", "visual", "positions", "branches"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:limit], err_msg=name)
        for name in ("patches", "tile_grid", "tile_image", "tile_slot"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name), err_msg=name)
        supervised = (whole.loss_weights > 0)[:limit]
        weight = 1 if reduction == "token" else 1 / supervised.sum()
        np.testing.assert_allclose(cut.loss_weights, supervised * weight, rtol=1e-6)


def test_a_cut_leaves_something_to_learn(preparer, png):
    preparer = dataclasses.replace(preparer, too_long="truncate")
    for turns, images in (
        ((Turn("user", "<image>\n" + "Why? " * 20), Turn("assistant", "17")), (png(28, 28),)),
        ((Turn("user", "Why?"), Turn("assistant", "17")), ()),
    ):
        conversation = Conversation(turns, images, "x")
        first = int(preparer(conversation).loss_weights.argmax()) + 1
        assert preparer.measure(conversation).least == first
        cut = dataclasses.replace(preparer, max_tokens=first)(conversation)
        assert np.flatnonzero(cut.loss_weights).tolist() == [first - 1]
        with pytest.raises(RecordError, match="cannot be cut"):
            dataclasses.replace(preparer, max_tokens=first - 1)(conversation)
    question = Conversation((Turn("user", "Why?"),), (), "x")
    tokens, _, least = preparer.measure(question)
    assert least == tokens + 1
    with pytest.raises(RecordError, match="cannot be cut"):
        dataclasses.replace(preparer, max_tokens=tokens - 1)(question)
    with pytest.raises(RecordError, match="longer than the context"):  # a prompt is never cut
        dataclasses.replace(preparer, max_tokens=20)(question, open_turn=True)


def test_independent_questions_are_cut_at_the_end(preparer, png):
    texts = ("<image>\nWhat is it?", "A zebra.", "How many are there?", "17 zebras there.")
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    conversation = Conversation(turns, (png(28, 28),), "x", independent=True)
    preparer = dataclasses.replace(preparer, loss_reduction="sample", too_long="truncate")
    whole = preparer(conversation)
    limit = int(np.flatnonzero(whole.loss_weights > 0)[-3]) + 1
    cut = dataclasses.replace(preparer, max_tokens=limit)(conversation)
    np.testing.assert_array_equal(cut.positions, whole.positions[:limit])
    for branch in (1, 2):
        assert cut.loss_weights[cut.branches == branch].sum() == pytest.approx(1)


def test_a_source_may_have_tiles_of_its_own(preparer, png):
    conversation = Conversation(
        (Turn("user", "<image>\n<image>"), Turn("assistant", "!")), (png(112, 28), png(28, 28)), "x"
    )
    for most, tiles in [(None, 3 + 1), (2, 1 + 1), (8, 5 + 1), (1, 1 + 1)]:
        assert preparer.measure(dataclasses.replace(conversation, max_tiles=most)).tiles == tiles
        assert len(preparer(dataclasses.replace(conversation, max_tiles=most)).patches) == tiles
    single = Conversation((Turn("user", ""), Turn("assistant", "!")), (png(112, 28),), "x", max_tiles=3)
    least = dataclasses.replace(preparer, layout=dataclasses.replace(preparer.layout, min_tiles=4))
    assert least.measure(single).tiles == 3 + 1


def test_losses_of_jpeg_are_drawn_tile_by_tile(preparer, png):
    conversation = Conversation((Turn("user", ""), Turn("assistant", "!")), (png(112, 28), png(28, 28, 1)), "x")
    conversation = dataclasses.replace(
        conversation, turns=(Turn("user", "<image><image>"), Turn("assistant", "!")), augment=True
    )
    clean = preparer(conversation)
    drawn = preparer(conversation, draw=(1, 2, 3))
    again, other = preparer(conversation, draw=(1, 2, 3)), preparer(conversation, draw=(1, 2, 4))
    np.testing.assert_array_equal(
        clean.patches, preparer(dataclasses.replace(conversation, augment=False), draw=(1,)).patches
    )
    np.testing.assert_array_equal(drawn.patches, again.patches)
    assert (drawn.patches != other.patches).any()
    pixels = [unpatchify(example.patches, (2, 2), 14) for example in (clean, drawn)]
    np.testing.assert_array_equal(pixels[1], reencode(pixels[0], np.random.default_rng((1, 2, 3))))
    np.testing.assert_array_equal(clean.tokens, drawn.tokens)


def test_text_only_and_open_turn(preparer):
    example = preparer(Conversation((Turn("user", "Why?"),), (), "x"), open_turn=True)
    assert example.patches.shape == (0, 4, 588)
    assert example.tile_grid.shape == (0, 2)
    assert not example.loss_weights.any()
    assert preparer.tokenizer.decode(example.tokens, skip_special=False).endswith("<|im_start|>assistant\n")


def test_mistakes_name_the_record(preparer, conversation):
    tokens = preparer.measure(conversation).tokens
    assert len(dataclasses.replace(preparer, max_tokens=tokens)(conversation).tokens) == tokens
    small = dataclasses.replace(preparer, max_tokens=tokens - 1)
    expected = (
        rf"^record z1: prompt longer than the context: {tokens} tokens, the limit is {tokens - 1} \(max_tokens\)$"
    )
    with pytest.raises(UserError, match=expected):
        small(conversation)
    assert small.measure(conversation)[0] == tokens  # what may be packed is for the batches to say
    broken = dataclasses.replace(conversation, images=(conversation.images[0], b"no image"))
    for use in (preparer, preparer.measure):
        with pytest.raises(UserError, match=r"^record z1: image 1: cannot read this image"):
            use(broken)
    with pytest.raises(UserError, match=r"^record z1: .* mark"):
        preparer(dataclasses.replace(conversation, images=()))
    with pytest.raises(UserError, match="patch_size"):
        dataclasses.replace(preparer, patch_size=0)


def test_pixels_that_make_no_whole_patch_are_dropped(preparer, conversation):
    """SigLIP's tiles of 384 pixels hold 27 patches of 14 along a side."""
    example = dataclasses.replace(preparer, patch_size=12)(conversation)
    assert example.tile_grid.tolist() == [[2, 2]] * len(example.patches)
    pixels = preparer.layout.cut_tiles(decode_image(conversation.images[0], "x"))
    np.testing.assert_array_equal(example.patches[: len(pixels)], patchify(pixels[:, :24, :24], 12))


def of_format(name, layout, patch_size, tokens_per_tile):
    template = TEMPLATES[name]
    tokenizer = Tokenizer.train(["USER: is it a dog? ASSISTANT: yes"] * 3, 300, template)
    return Preparer(tokenizer, template, layout, patch_size, tokens_per_tile, 400)


def test_rows_of_patches_end_with_their_token(png):
    """Fuyu: the image before the prompt, |NEWLINE| behind every row of |SPEAKER|, then <s>."""
    preparer = of_format("fuyu", NativeRaster(patch_size=10, slot=4), 10, 4)
    turns = (Turn("user", "What is <image>it?"), Turn("assistant", "A dog."))
    record = Conversation(turns, (png(25, 20),), "f", "t")
    example, words = preparer(record), preparer.tokenizer
    patch, row, begin = map(words.token_id, ("|SPEAKER|", "|NEWLINE|", "<s>"))
    image = [patch, patch, patch, row] * 2
    assert example.tokens.tolist() == [
        *image, begin, *words.encode("User:What is it? Assistant:\x04"), *words.encode(" A dog."),
        words.token_id("|ENDOFTEXT|"),
    ]  # fmt: skip
    assert example.visual[:10].tolist() == [0, 1, 2, -1, 3, 4, 5, -1, -1, -1]
    assert words.decode(example.tokens[example.loss_weights > 0], skip_special=False) == " A dog.|ENDOFTEXT|"
    # Cut at the end, it keeps the image with its last row's end, and one token of the answer.
    assert preparer.measure(record).least == int((example.loss_weights > 0).argmax()) + 1
    reversed_ = dataclasses.replace(preparer, template=dataclasses.replace(preparer.template, row_token=None))
    with pytest.raises(UserError, match=r"'fuyu' has none for it \(row_token\)"):
        reversed_(record)


def test_what_stands_for_an_image_is_the_format_s(png):
    """LLaVA-NeXT: learned newlines too are <image> in the row of tokens, and nothing stands around it."""
    preparer = of_format("vicuna_v1", AnyRes(tile_size=20), 10, 4)
    record = Conversation((Turn("user", "Is it?\n<image>"), Turn("assistant", "Yes")), (png(40, 20),), "n", "t")
    example, words = preparer(record), preparer.tokenizer
    image = words.token_id("<image>")
    places = np.flatnonzero(example.tokens == image)
    assert (np.diff(places) == 1).all()
    assert example.visual[places].tolist() == preparer.layout.place(40, 20, 4).tolist()
    assert (example.visual[places] < -1).sum() == 2  # a newline behind each of two rows
    assert words.decode(example.tokens[: places[0]], skip_special=False).endswith("user's questions. USER: ")
    assert words.decode(example.tokens[places[-1] + 1 :], skip_special=False) == "\nIs it? ASSISTANT: Yes</s>"
    assert example.tokens[0] == words.token_id("<s>")
