"""How quickly an image file becomes patches, and whether memory stays flat.

  python benchmarks/loading.py             against the floor, and what the options that change pixels gain
  python benchmarks/loading.py --memory    10 000 conversations through the pipeline, with the memory held (minutes)

The floor is Pillow alone: decode, resize to the grid, resize to the thumbnail. What comes on top of it must be moved in
any case: of the resized image (4 bytes a pixel) Pillow makes RGB in pieces, which it joins, and every line of a patch
goes to its place once. For twelve tiles of 448 px that is 9.6 MB read, then three times 7.2 MB written and twice read,
and a twelfth of it more for the thumbnail: 50 MB, some 4 ms at 12 GB/s, beside 50 ms or more of decoding and resizing.
So 1.07 was expected for 1024 x 768, and less where more is decoded. The limit is 1.1.

Wall times are those of a machine that may be doing other things as well; the median of the processor times' ratios is
the steadiest, and is held to the limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import random
import time
from collections.abc import Iterator

import numpy as np
from measure import in_turns, machine, ratios, resident
from pictures import photo
from PIL import Image

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.feed import batches
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.pixels import image_patches
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer

SIZES = ((1024, 768), (3840, 2160))
PATCH = 14
LIMIT = 1.1
OPTIONS = {
    "draft": {"draft": True},
    "reducing_gap=3": {"reducing_gap": 3.0},
    "reducing_gap=2": {"reducing_gap": 2.0},
    "draft, reducing_gap=2": {"draft": True, "reducing_gap": 2.0},
}


def main() -> None:
    """Reads the flags and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="rounds in which the ways take turns (%(default)s)")
    parser.add_argument("--memory", action="store_true", help="memory held while 10 000 conversations are prepared")
    parser.add_argument("--conversations", type=int, default=10_000, help="for --memory (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="for --memory (%(default)s)")
    flags = parser.parse_args()
    print(machine())
    if flags.memory:
        memory(flags.conversations, flags.workers)
    else:
        against_the_floor(flags.repeats)
        options(max(3, flags.repeats // 3))


def against_the_floor(repeats: int) -> None:
    """Prints the table of `image_patches` to the floor."""
    print("\nAn image file to its patches, to Pillow's decoding and resizing alone (limit 1.1)")
    print(f"{'image':>12} {'tiles':>8} {'floor ms':>9} {'ours ms':>9}   wall min  median   processor min  median")
    for width, height in SIZES:
        data = photo(width, height)
        for most in (12, 40):
            layout = ClosestAspect(max_tiles=most)
            columns, rows = layout.grid(width, height)
            ways = {
                "floor": lambda data=data, grid=(columns, rows), side=layout.tile_size: floor(data, grid, side),
                "ours": lambda data=data, layout=layout: image_patches(data, "photo", layout, PATCH),
            }
            times = in_turns(ways, repeats)
            wall, wall_median, processor, processor_median = ratios(times["ours"], times["floor"])
            shortest = [min(wall for wall, _ in times[name]) * 1e3 for name in ("floor", "ours")]
            print(
                f"{f'{width}x{height}':>12} {f'{columns}x{rows}+1':>8} {shortest[0]:9.1f} {shortest[1]:9.1f} "
                f"{wall:10.3f} {wall_median:7.3f} {processor:15.3f} {processor_median:7.3f}"
                f"{'' if processor_median <= LIMIT else '   over the limit'}"
            )


def floor(data: bytes, grid: tuple[int, int], side: int) -> tuple[Image.Image, Image.Image]:
    """What nobody can leave out: Pillow's decoding and its two resizes."""
    image = Image.open(io.BytesIO(data))
    image.load()
    columns, rows = grid
    whole = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    return whole, image.resize((side, side), Image.Resampling.BICUBIC)


def options(repeats: int) -> None:
    """Prints what each option that changes pixels gains and changes."""
    print("\nOptions of the layout that change pixels, to the exact way (differences in levels of 256)")
    print(f"{'image':>12} {'tiles':>6} {'option':>22}   time min  median   mean difference  99.9 %  largest")
    for width, height in SIZES:
        data = photo(width, height)
        for most in (12, 40) if width > 2000 else (12,):
            exact = ClosestAspect(max_tiles=most)
            layouts = {"exact": exact} | {
                name: dataclasses.replace(exact, **fields) for name, fields in OPTIONS.items()
            }
            times = in_turns(
                {
                    name: lambda data=data, layout=layout: image_patches(data, "photo", layout, PATCH)
                    for name, layout in layouts.items()
                },
                repeats,
            )
            reference = image_patches(data, "photo", exact, PATCH).astype(np.int16)
            for name in OPTIONS:
                found = image_patches(data, "photo", layouts[name], PATCH)
                difference = np.abs(found - reference)
                shortest, median, *_ = ratios(times[name], times["exact"])
                print(
                    f"{f'{width}x{height}':>12} {most:6} {name:>22} {shortest:10.3f} {median:7.3f} "
                    f"{difference.mean():17.3f} {np.quantile(difference, 0.999):7.0f} {difference.max():8}"
                )


class Many:
    """Conversations made on the spot, no two alike, so that nothing is held but what the pipeline holds."""

    name = "many"

    def __init__(self, count: int) -> None:
        """`count` conversations, nine of ten with one of two hundred pictures of many shapes."""
        self.count = count
        self.pictures = [photo(200 + 3 * number, 500 - 2 * number, number) for number in range(200)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Conversation:
        draw = random.Random(index)
        words = [f"{draw.getrandbits(30):x}" for _ in range(draw.randrange(5, 60))]
        picture = (self.pictures[index % len(self.pictures)],) if index % 10 else ()
        question = "<image>\n" * len(picture) + " ".join(words[: len(words) // 2])
        return Conversation((Turn("user", question), Turn("assistant", " ".join(words))), picture, str(index))


def memory(conversations: int, workers: int) -> None:
    """Prepares so many conversations and prints the memory held on the way."""
    source = Many(conversations)
    tokenizer = Tokenizer.train((turn.text for number in range(500) for turn in source[number].turns), 2000)
    preparer = Preparer(tokenizer, TEMPLATES["internvl2"], ClosestAspect(tile_size=112), PATCH, 16, 4096)
    config = MixtureConfig(rows=4, tokens=2048, tiles=64, window=2048)
    print(f"\n{conversations} conversations, {workers} workers: memory held")
    held = []
    started = time.perf_counter()
    for seen in _prepared(source, preparer, config, workers, step=max(1, conversations // 10)):
        held.append(resident())
        children = sum(resident(process) for process in _children())
        print(
            f"{seen:8} conversations {time.perf_counter() - started:7.1f} s {held[-1]:8.0f} MiB"
            + (f", workers {children:8.0f} MiB" if workers else ""),
            flush=True,
        )
    settled = held[len(held) // 5 :]
    print(f"after the first fifth: {min(settled):.0f} to {max(settled):.0f} MiB, {settled[-1] - settled[0]:+.0f} MiB")


def _prepared(source: Many, preparer: Preparer, config: MixtureConfig, workers: int, step: int) -> Iterator[int]:
    seen, shown = 0, 0
    feed = batches(source, preparer, config, 0, workers=workers)
    try:
        for _, batch, _ in feed:
            seen += int(batch.segments.max(axis=1).sum())
            if seen >= shown + step:
                shown = seen - seen % step
                yield seen
            if seen >= len(source):
                return
    finally:
        feed.close()


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


if __name__ == "__main__":
    main()
