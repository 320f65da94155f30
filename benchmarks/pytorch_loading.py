"""Conversations a second from files' bytes to batches, beside what a PyTorch user writes, with as many workers.

  python benchmarks/pytorch_loading.py             a mixture of photographs and documents, with 0, 1 and 2 workers
  python benchmarks/pytorch_loading.py --kinds     and every kind of picture alone

Both read the same conversations from memory and give the same pixels, which is checked first, bit for bit, after our
bytes have been normalised too. The PyTorch way: a `Dataset` that opens with Pillow, stretches to the grid, crops the
tiles, adds the thumbnail, applies torchvision's transforms (ToTensor, Normalize) and tokenises the whole prompt, in a
`DataLoader` whose collate function pads. Ours: `vlm_jax.data.feed.batches`, packed rows of bytes.

Both ways take turns in one run; the first batches of each are not counted. Beside conversations a second stands the
processor time of all processes for one conversation, which says what was saved, not only what was done side by side.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from measure import machine, processor_seconds
from pictures import document, photo
from PIL import Image

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.feed import batches
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.layouts.patches import unpatchify
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.sources import MemorySource
from vlm_jax.data.text.templates import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer

LIMIT = 1.5
TILE, PATCH, TOKENS_PER_TILE = 448, 14, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUT = ClosestAspect(tile_size=TILE)
TEMPLATE = TEMPLATES["internvl2"]
KINDS = {
    "photo 1024x768": lambda number: photo(1024, 768, number),
    "grey document": lambda number: document(number, grey=True),
    "colour document": lambda number: document(number, grey=False),
    "photo 3840x2160": lambda number: photo(3840, 2160, number),
}
# Of sixty conversations.
MIXTURE = {"photo 1024x768": 36, "grey document": 9, "colour document": 9, "photo 3840x2160": 6}


def conversations(counts: dict[str, int]) -> list[Conversation]:
    """So many of each kind, mixed."""
    found = []
    for kind, count in counts.items():
        for number in range(count):
            question = f"<image>\nWhat can be seen in picture {number}? Name what matters first."
            answer = " ".join(f"It is number {number}, of the kind {kind}, and thing {i} is there." for i in range(8))
            turns = (Turn("user", question), Turn("assistant", answer))
            found.append(Conversation(turns, (KINDS[kind](number),), f"{kind} {number}"))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def import_torchvision() -> Any:
    """torchvision; its wheel needs help to be imported beside a PyTorch without CUDA, as in the tests."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tests import torchvision_stub

    torchvision_stub.install()
    from torchvision import transforms

    return transforms


class Tiles:
    """The reference way: one conversation to float tiles and ids, in the manner of a PyTorch `Dataset`."""

    def __init__(self, records: Sequence[Conversation], tokenizer_json: str) -> None:
        """Keeps the records, and what tokenises and normalises them."""
        transforms = import_torchvision()
        self.records = records
        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        record = self.records[index]
        tiles = self.cut(Image.open(io.BytesIO(record.images[0])).convert("RGB"))
        pixels = torch.stack([self.transform(tile) for tile in tiles])
        picture = IMAGE_START + IMAGE_CONTEXT * (TOKENS_PER_TILE * len(tiles)) + IMAGE_END
        question, answer = (turn.text for turn in record.turns)
        head = TEMPLATE.prefixes["system"] + TEMPLATE.system + TEMPLATE.stop + TEMPLATE.after_stop
        head += TEMPLATE.prefixes["user"] + question.replace("<image>", picture) + TEMPLATE.stop + TEMPLATE.after_stop
        head += TEMPLATE.prefixes["assistant"]
        prompt = self.tokenizer.encode(head, add_special_tokens=False).ids
        ids = prompt + self.tokenizer.encode(answer + TEMPLATE.stop, add_special_tokens=False).ids
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        return {"pixels": pixels, "ids": torch.tensor(ids), "labels": torch.tensor(labels)}

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The grid's tiles, then the thumbnail."""
        columns, rows = LAYOUT.grid(*image.size)
        whole = image.resize((TILE * columns, TILE * rows), Image.Resampling.BICUBIC)
        corners = [(TILE * column, TILE * row) for row in range(rows) for column in range(columns)]
        tiles = [whole.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
        if len(tiles) > 1:
            tiles.append(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
        return tiles


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Texts padded to the longest, tiles one after another."""
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([sample["ids"] for sample in samples], batch_first=True)
    return {
        "ids": ids,
        "labels": pad([sample["labels"] for sample in samples], batch_first=True, padding_value=-100),
        "mask": pad([torch.ones_like(sample["ids"]) for sample in samples], batch_first=True).bool(),
        "pixels": torch.cat([sample["pixels"] for sample in samples]),
    }


def reference_feed(dataset: Tiles, workers: int, batch_size: int) -> Generator[int]:
    """Endless; the number of conversations in each batch."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    while True:
        for batch in loader:
            yield len(batch["ids"])


def our_feed(source: MemorySource, preparer: Preparer, config: MixtureConfig, workers: int) -> Generator[int]:
    """Endless; the number of conversations in each batch."""
    feed = batches(source, preparer, config, 0, workers=workers)
    try:
        for _, batch, _ in feed:
            yield int(batch.segments.max(axis=1).sum())
    finally:
        feed.close()


def speed(feed: Generator[int], count: int, first: int) -> tuple[float, float]:
    """Conversations a second, and processor seconds for one, after the first batches."""
    for _ in range(first):
        next(feed)
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    busy = sum(map(processor_seconds, processes))
    started, seen = time.perf_counter(), 0
    while seen < count:
        seen += next(feed)
    wall = time.perf_counter() - started
    busy = sum(map(processor_seconds, processes)) - busy
    feed.close()
    return seen / wall, busy / seen


def check_pixels(dataset: Tiles, preparer: Preparer) -> None:
    """Our bytes, normalised as torchvision does it, are the other way's floats, bit for bit."""
    import torch

    side = TILE // PATCH
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for number, record in enumerate(dataset.records[:20]):
        tiles = torch.from_numpy(unpatchify(preparer(record).patches, (side, side), PATCH)).permute(0, 3, 1, 2)
        ours = (tiles.contiguous().float() / 255 - mean) / std
        if not torch.equal(ours, dataset[number]["pixels"]):
            raise SystemExit(f"{record.id}: the pixels differ")
    print(f"{number + 1} conversations: pixels equal, bit for bit")


def compare(records: list[Conversation], tokenizer: Tokenizer, workers: Sequence[int], rounds: int, count: int) -> None:
    """Prints conversations a second both ways."""
    preparer = Preparer(tokenizer, TEMPLATE, LAYOUT, PATCH, TOKENS_PER_TILE, 16384)
    config = MixtureConfig(rows=1, tokens=16384, tiles=60)
    source, dataset = MemorySource(records), Tiles(records, tokenizer.to_json())
    check_pixels(dataset, preparer)
    times = "processor ms: PyTorch  ours  ratio"
    print(f"{'workers':>8} {'PyTorch /s':>11} {'ours /s':>9}   ratio median   min   max   {times}")
    for number in workers:
        feeds: dict[str, Callable[[], Iterator[int]]] = {
            "reference": lambda number=number: reference_feed(dataset, number, 4),
            "ours": lambda number=number: our_feed(source, preparer, config, number),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in feeds}
        for turn in range(rounds):
            for name in list(feeds)[:: 1 if turn % 2 else -1]:
                found[name].append(speed(feeds[name](), count, first=3 + 2 * number))
        theirs, ours = ([value[0] for value in found[name]] for name in ("reference", "ours"))
        busy = [statistics.median(value[1] for value in found[name]) * 1e3 for name in ("reference", "ours")]
        gains = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{number:8} {statistics.median(theirs):11.2f} {statistics.median(ours):9.2f} "
            f"{statistics.median(gains):14.2f} {min(gains):5.2f} {max(gains):5.2f} "
            f"{busy[0]:23.0f} {busy[1]:5.0f} {busy[0] / busy[1]:6.2f}"
            f"{'' if statistics.median(gains) >= LIMIT else '   below the limit'}",
            flush=True,
        )


def main() -> None:
    """Reads the flags and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers to compare with")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each way (%(default)s)")
    parser.add_argument("--conversations", type=int, default=60, help="counted in each turn (%(default)s)")
    parser.add_argument("--kinds", action="store_true", help="every kind of picture alone as well")
    flags = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # as a `DataLoader` does in its workers; its threads only get in the way here
    print(f"{machine()}, PyTorch {torch.__version__}")
    mixed = conversations(MIXTURE)
    tokenizer = Tokenizer.train((turn.text for record in mixed for turn in record.turns), 1000)
    print(f"\nmixture of {MIXTURE}: at least {LIMIT}")
    compare(mixed, tokenizer, flags.workers, flags.rounds, flags.conversations)
    for kind in KINDS if flags.kinds else ():
        print(f"\n{kind}")
        compare(conversations({kind: 6}), tokenizer, flags.workers, flags.rounds, flags.conversations // 2)


if __name__ == "__main__":
    main()
