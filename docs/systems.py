"""Computes `docs/systems.md`: `python docs/systems.py --write`.

Rows and paragraphs of systems that work come from their configs, which are read and not run: the docstring, `ARGUMENTS`
and `SYSTEM`. Those that do not work yet stand here, with what they wait for. `tests/test_docs.py` fails when the
document and the configs part ways.
"""

import ast
import sys
import textwrap
from pathlib import Path

from vlm_jax.recipe_files import read_recipe

DOCUMENT = Path(__file__).parent / "systems.md"
ROOT = DOCUMENT.parents[1]
CONFIGS = [ROOT / "configs" / "mini_internvl.py", *sorted((ROOT / "configs" / "systems").glob("*.py"))]

WAITING = {
    1: ("Flamingo", "tanh-gated cross-attention to a Perceiver resampler's tokens, interleaved documents",
        "`open_flamingo`'s resampler and gated block; a closed gate leaves the language model as it is",
        "cross-attention layers, a resampler, interleaved data"),
    2: ("BLIP-2", "a Q-Former between EVA-CLIP and OPT or FlanT5, with three objectives before it speaks",
        "`Blip2ForConditionalGeneration`, `Blip2ForImageTextRetrieval`",
        "a Q-Former, contrastive and matching objectives, an encoder-decoder"),
    3: ("InstructBLIP", "BLIP-2 whose queries read the instruction", "`InstructBlipForConditionalGeneration`",
        "BLIP-2's parts, ranking of candidates"),
    7: ("LaVIN", "adapters that route between image and text in a frozen language model",
        "a reference of its own; a zero adapter changes nothing", "routed adapters"),
    8: ("MIMIC-IT (Otter)", "Flamingo tuned on instructions with examples in context", "Flamingo's",
        "Flamingo's parts, examples in context"),
    11: ("Qwen-VL", "one cross-attention layer of 256 queries, boxes as text, three stages",
         "`torch.nn.MultiheadAttention` for its one layer", "a query resampler with two-dimensional positions"),
    12: ("NExT-GPT", "any modality in and out, by signal tokens for diffusion models",
         "`torch.nn.Transformer`, a small U-Net of `diffusers`",
         "low-rank adapters, a grouping connector, signal tokens and their objectives"),
    13: ("InternLM-XComposer", "a Q-Former's tokens in InternLM, articles with pictures set between paragraphs",
         "`Blip2QFormerModel`", "a Q-Former, interleaved data, ranking"),
    14: ("CogVLM", "a visual expert: own attention and MLP weights for image tokens in every layer",
         "without image tokens the language model; equal weights change nothing", "weights by kind of token"),
    16: ("Monkey", "windows of 448 px, each with low-rank weights of its own, before Qwen-VL's resampler",
         "Qwen-VL's; zero adapters change nothing", "Qwen-VL's parts, low-rank weights by window"),
    17: ("LLaMA-VID", "two tokens for a frame of a video: one for its content, one for what is asked",
         "a reference of its own", "a context and content pooler, a Q-Former"),
    18: ("MoE-LLaVA", "sparse experts in every second layer", "`MixtralForCausalLM`; equal experts are one MLP",
         "sparse experts with a balance loss"),
    19: ("LLaVA-UHD", "slices of the image's own shape, 64 tokens each, with separators between them",
         "`torch.nn.MultiheadAttention`; which slices, by test vectors", "a resampler, towers on slices not square"),
    21: ("InternLM-XComposer2-4KHD", "up to 55 tiles, newlines and a separator, low-rank weights for image tokens",
         "which tiles, by test vectors; zero adapters change nothing", "low-rank weights by kind of token, its layout"),
    22: ("InternVL 1.0", "InternViT-6B, contrastive training, and a language model with queries as the bridge",
         "`InternVLVisionModel`, the CLIP loss", "contrastive training, cross-attention layers, retrieval"),
}  # fmt: skip
"""By number: name, what it is, the oracle or the invariants that it will be held to, what it waits for."""

HEAD = """# The systems

<!-- Computed by docs/systems.py; do not edit. -->

Twenty-four vision-language systems are compositions of parts: a vision encoder, a connector, a decoder, an image
layout, a prompt format, and stages. Those that work are a config each; nothing else in the code knows one by name.
*Partial* says what is missing. `python -m vlm_jax.main --help` lists the configs with their arguments,
`--help --config=FILE` shows one, and `FILE:tiny` of those in `configs/systems/` trains the same parts, small, on the
pocket data.

"""


def systems() -> dict[int, tuple[Path, dict]]:
    """By number: the config of every system that has one, and its `SYSTEM`."""
    tables = {path: _literal(path, "SYSTEM") for path in CONFIGS}
    return {
        table["number"]: (path, table) for path, table in sorted(tables.items(), key=lambda item: item[1]["number"])
    }


def document() -> str:
    """All of `docs/systems.md`."""
    known = systems()
    assert not known.keys() & WAITING.keys(), "a system that has a config waits for nothing"
    assert sorted(known.keys() | WAITING.keys()) == list(range(1, 25))
    lines = ["| # | system | what it is | config | oracle or invariants | works today |", "|---|---|---|---|---|---|"]
    for number in range(1, 25):
        if number in known:
            path, table = known[number]
            name, what, oracle = f"[{table['name']}](#{_anchor(table['name'])})", _summary(path), table["oracle"]
            config = f"[`{path.relative_to(ROOT)}`](../{path.relative_to(ROOT)})"
            works = f"partial; missing: {table['missing']}" if table["missing"] else "yes"
        else:
            name, what, oracle, needs = WAITING[number]
            config, works = "–", f"later; needs {needs}"
        lines.append(f"| {number} | {name} | {what} | {config} | {oracle} | {works} |")
    sections = [_section(path, table) for path, table in known.values()]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(sections)


def _section(path: Path, table: dict) -> str:
    """What a config's docstring says beyond its command, and the system's sizes."""
    recipe = read_recipe(path)
    paragraphs = [text for text in recipe.doc.split("\n\n")[1:] if not text.startswith("    ")]
    what = _summary(path)
    lines = [f"## {table['name']}", "", f"{what[0].upper()}{what[1:]}.", "", "\n\n".join(paragraphs), ""]
    lines += [f"`{path.relative_to(ROOT)}` with", ""]
    for argument, (what, time) in (recipe.arguments or {}).items():
        size = f"; {table['parameters'][argument]:,} parameters" if argument in table["parameters"] else ""
        lines.append(f"- `{argument}`: {what} ({time}){size}")
    if table["counted"]:
        lines += ["", *textwrap.wrap(f"Parameters: {table['counted']}.", 120)]
    return "\n".join(lines) + "\n"


def _summary(path: Path) -> str:
    """What stands behind the name in the docstring's first line."""
    return read_recipe(path).doc.splitlines()[0].partition(": ")[2].rstrip(".")


def _anchor(name: str) -> str:
    """The link that a page has to a heading."""
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _literal(path: Path, name: str) -> dict:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise SystemExit(f"{path}: no table {name}")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(document(), encoding="utf-8")
    else:
        sys.stdout.write(document())
