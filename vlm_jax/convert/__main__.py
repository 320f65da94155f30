"""`python -m vlm_jax.convert`: model folders from one layout to another."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_jax import cli
from vlm_jax.errors import UserError

if TYPE_CHECKING:
    from vlm_jax.convert.folders import Opened

_HELP = """\
Writes a trained or downloaded model as a folder that other programs read.

  --source is a training workdir (what `vlm_jax.main --workdir` wrote) or a model folder in any layout: InternVL's, or
  LLaVA's and LLaVA-NeXT's for `transformers`.
  --vision and --decoder put a new model together instead: a vision tower (InternViT, CLIP, SigLIP) and a language model
  (Qwen2, Qwen3, InternLM2, Phi-3, Llama), with a fresh connector and InternVL's nine tokens added.

  --layout=hf is that of `transformers` (InternVLForConditionalGeneration, LlavaForConditionalGeneration or
  LlavaNextForConditionalGeneration, as the parts have it): weights, config, tokenizer, chat template and image
  processor, ready for AutoModelForImageTextToText.from_pretrained. --layout=internvl is that of InternVL's own code
  (InternVLChatModel), without the code. --layout=orbax is a workdir with one checkpoint.

  --part=vision writes the encoder alone, as InternViT's own folders are (--layout=internvl); its --source may be a
  tower too, and a CLIP becomes the InternViT that is nearest to it. --part=decoder writes the language model alone,
  for AutoModelForCausalLM (--layout=hf).

examples:
  python -m vlm_jax.convert --source=runs/pocket --target=pocket-hf --layout=hf
  python -m vlm_jax.convert --source=InternVL2-1B --target=InternVL2-1B-hf --layout=hf --verify
  python -m vlm_jax.convert --source=runs/pocket --step=400 --target=pocket-400 --layout=hf --dtype=bfloat16
  python -m vlm_jax.convert --vision=InternViT-300M-448px --decoder=Qwen2-0.5B-Instruct --target=fresh-1b --layout=hf
  python -m vlm_jax.convert --source=clip-vit-large-patch14-336 --part=vision --image-size=448 --target=student \\
      --layout=internvl

It ends with a table: parameters, bytes and a checksum of what was written, read back from the disk. The checksum
depends on the parameters alone, so that folders of equal weights have equal checksums in every layout.
"""


class Job(NamedTuple):
    """What is to be done.

    Attributes:
      params: nested dict of the parameters that are written.
      write: (dtype, progress) -> None; progress is called for every tensor.
      reopen: gives the parameters of what was written.
    """

    params: dict[str, Any]
    write: Callable[[str, Callable[[], None]], None]
    reopen: Callable[[], dict[str, Any]]


def main(argv: list[str]) -> int:
    """Runs the command with these arguments."""
    flags = _parser().parse_args(argv)
    _check(flags)
    from vlm_jax import globs
    from vlm_jax.convert.safetensors_folder import DTYPES
    from vlm_jax.convert.summary import summarise, table

    job = {"model": _model, "vision": _vision, "decoder": _decoder}[flags.part](flags)
    flat = globs.flatten(job.params)
    dtype = flags.dtype or _dtype_of(flat, fresh=() if flags.source else ("connector",))
    with cli.progress(f"writing {flags.target}", len(flat)) as advance:
        job.write(dtype, advance)
    written = globs.flatten(job.reopen())
    parts = summarise(_with_progress("checking what was written", written))
    if parts != summarise(_with_progress("comparing with the source", flat), DTYPES[dtype]):
        raise RuntimeError(f"{flags.target}: what was read back differs from what was written")
    sys.stdout.write(f"{table(parts)}\nwritten to {flags.target}\n")
    return _verify(Path(flags.target), flags.layout) if flags.verify else cli.OK


def _parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(prog="python -m vlm_jax.convert", description=_HELP)
    parser.add_argument("--source", metavar="DIR", help="training workdir or model folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a workdir (default: the newest)")
    parser.add_argument("--vision", metavar="DIR", help="folder of a vision tower, with --decoder in place of --source")
    parser.add_argument("--decoder", metavar="DIR", help="folder of a language model and its tokenizer")
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of a tower's images (default: its own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the fresh connector (default: 0)")
    parser.add_argument("--target", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--layout", required=True, choices=["hf", "internvl", "orbax"], help="layout of the target")
    parser.add_argument(
        "--part", choices=["model", "vision", "decoder"], default="model", help="what to write (default: model)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the written weights (default: the source's; float32 where it has both)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits and a greedy answer with transformers in PyTorch, in float32 on the CPU",
    )
    return parser


def _check(flags: argparse.Namespace) -> None:
    """Flags that do not go together."""
    parts = (flags.vision, flags.decoder)
    if bool(flags.source) == any(parts) or any(parts) != all(parts) or (any(parts) and flags.step is not None):
        raise UserError("either --source (with --step, if need be), or both --vision and --decoder")
    layouts = {"vision": "internvl", "decoder": "hf"}
    if flags.layout != layouts.get(flags.part, flags.layout):
        raise UserError(f"--part={flags.part} is written in --layout={layouts[flags.part]} alone")
    if flags.part != "model" and (any(parts) or flags.verify):
        raise UserError(f"--part={flags.part} goes with --source, without --verify")
    if flags.image_size is not None and flags.image_size < 1:
        raise UserError(f"--image-size must be positive, got {flags.image_size}")
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed must lie in 0..{2**32 - 1}, got {flags.seed}")
    if flags.image_size is not None and flags.source and flags.part != "vision":
        raise UserError("--image-size goes with --vision, or with --part=vision")


def _model(flags: argparse.Namespace) -> Job:
    from vlm_jax.convert.assemble import assemble
    from vlm_jax.convert.workdirs import open_model

    if flags.source:
        opened = open_model(flags.source, flags.step)
    else:
        opened = assemble(flags.vision, flags.decoder, image_size=flags.image_size, seed=flags.seed)
    return Job(
        opened.params,
        lambda dtype, progress: _write_model(Path(flags.target), opened, dtype, flags.layout, progress),
        lambda: open_model(flags.target).params,
    )


def _vision(flags: argparse.Namespace) -> Job:
    from vlm_jax.convert.towers import open_internvit, open_tower, write_tower

    params, vision = open_internvit(flags.source, flags.step, flags.image_size)
    return Job(
        params,
        lambda dtype, progress: write_tower(flags.target, params, vision, dtype, progress=progress),
        lambda: open_tower(flags.target)[0],
    )


def _decoder(flags: argparse.Namespace) -> Job:
    from vlm_jax.convert.language_models import open_decoder, write_decoder
    from vlm_jax.convert.workdirs import open_model

    opened = open_model(flags.source, flags.step)
    return Job(
        {"decoder": opened.params["decoder"]},
        lambda dtype, progress: write_decoder(flags.target, *opened, dtype, progress=progress),
        lambda: open_decoder(flags.target)[0],
    )


def _write_model(
    target: Path, opened: Opened, dtype: str, layout: str, progress: Callable[[], None] = lambda: None
) -> None:
    from vlm_jax.convert.folders import write_folder
    from vlm_jax.convert.workdirs import write_workdir

    if layout == "orbax":
        write_workdir(target, *opened, dtype)
    else:
        write_folder(target, *opened, dtype, layout, progress=progress)


def _dtype_of(flat: dict[str, Any], fresh: Sequence[str] = ()) -> str:
    """The smaller dtype of those that weights are stored in, if it holds all parameters exactly.

    Args:
      flat: {path: array}.
      fresh: parts that came from no folder, and follow the others.
    """
    from vlm_jax.convert.safetensors_folder import DTYPES

    found = {str(array.dtype) for path, array in flat.items() if path.split("/", 1)[0] not in fresh}
    other = sorted(found - DTYPES.keys())
    if other:
        raise UserError(f"the source's weights are {', '.join(other)}; choose --dtype={' or --dtype='.join(DTYPES)}")
    return "bfloat16" if found == {"bfloat16"} else "float32"


def _verify(target: Path, layout: str) -> int:
    """Compares with the reference; what is not in its layout is written in it for that."""
    from vlm_jax.convert.workdirs import open_model
    from vlm_jax.inference.verify import TOLERANCE, verify

    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.verify") as scratch:
        folder = target
        if layout != "hf":
            folder = Path(scratch) / "hf"
            _write_model(folder, open_model(target), "float32", "hf")
        sys.stderr.write("comparing with transformers (PyTorch, float32, CPU)\n")
        agreement = verify(folder)
    sys.stdout.write(f"verified: {agreement}\n")
    if not agreement.holds:
        raise UserError(f"{target}: differs from the reference by more than rounding (tolerance {TOLERANCE:g})")
    return cli.OK


def _with_progress(description: str, params: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    with cli.progress(description, len(params)) as advance:
        for item in params.items():
            yield item
            advance()


if __name__ == "__main__":
    cli.run(main)
