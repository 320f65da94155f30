"""Small LLaVAs in `transformers` with random perturbed weights, and their folders."""

import numpy as np

from tests import tiny
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.images import decode_image
from vlm_jax.data.layouts.patches import unpatchify
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.inference.model import Model

SIDE, PATCH = 28, 7
SQUARE = {"height": SIDE, "width": SIDE}
IMAGES = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
GRIDS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]

TOWER = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tokenizer(template: str = "vicuna_v1") -> Tokenizer:
    return Tokenizer.train(tiny.TEXTS, 330, TEMPLATES[template])


def model(name: str, words: Tokenizer, tower: dict, text: dict, **config):
    """`transformers`' class of this name."""
    import torch
    import transformers

    described = getattr(transformers, f"{name}Config")(
        vision_config={**TOWER, **tower},
        # More rows than words, as in the releases.
        text_config={**TEXT, "vocab_size": words.vocab_size + 5, **text},
        image_token_index=words.token_id("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        **config,
    )
    torch.manual_seed(0)
    reference = getattr(transformers, f"{name}ForConditionalGeneration")(described).eval()
    tiny.shake(reference)
    return reference


def conversations() -> list[Conversation]:
    """An image in front and one between two texts, with a second turn; no image; one image of another shape."""
    two = (
        Turn("user", "<image>\nWhat is the total?"),
        Turn("assistant", "128.50"),
        Turn("user", "Which photograph is brighter, 1 <image> or 2?"),
        Turn("assistant", "2"),
        Turn("user", "What is it?"),
    )
    return [
        Conversation(two, (tiny.png(64, 32, 1), tiny.png(30, 31, 2)), "two"),
        Conversation((Turn("user", "What is the total?"),), (), "text"),
        Conversation((Turn("user", "The total is <image>? Which?"),), (tiny.png(33, 52, 3),), "one"),
    ]


def torch_inputs(ours: Model, prompts: list[Conversation], sizes: bool = False) -> dict:
    """Our own batch of conversations as what `transformers` takes."""
    import torch

    batch, vision = ours.batch(prompts), ours.system.model.vision
    used = np.asarray(batch.tile_segment) > 0
    inputs = {
        "input_ids": torch.tensor(np.asarray(batch.tokens), dtype=torch.long),
        "attention_mask": torch.tensor(np.asarray(batch.segments) > 0, dtype=torch.long),
    }
    if used.any():
        tiles = unpatchify(np.asarray(batch.patches)[used], (vision.grid, vision.grid), PATCH)
        pixels = (tiles / 255 - np.array(vision.mean)) / np.array(vision.std)
        inputs["pixel_values"] = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
    if sizes:
        pictures = [decode_image(data, "x") for prompt in prompts for data in prompt.images]
        inputs["image_sizes"] = torch.tensor([(picture.height, picture.width) for picture in pictures])
    return inputs


def difference(ours: Model, reference, prompts: list[Conversation], sizes: bool = False) -> float:
    """Largest difference of two logits where there is no padding."""
    import torch

    inputs = torch_inputs(ours, prompts, sizes)
    with torch.no_grad():
        theirs = reference(**inputs).logits.numpy()
    found = np.asarray(ours.logits(ours.batch(prompts)))
    real = inputs["attention_mask"].numpy() > 0
    assert np.abs(theirs[real]).max() > 1
    return float(np.abs(found - theirs)[real].max())


def assert_same_weights(first, second, unread: tuple[str, ...] = ()) -> None:
    """Of two models of `transformers`, bit by bit, except what begins with one of `unread`."""
    found, wanted = (
        {name: value for name, value in reference.state_dict().items() if not name.startswith(unread or "-")}
        for reference in (first, second)
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy(), err_msg=name)
