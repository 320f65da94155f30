"""SentencePiece models made on the spot, folders as released, and what slow tokenizers make of a prompt."""

import io
import json
import re

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

TEXTS = [
    "What is the total of this receipt? The total is 128.50.\tRead the digit in row 2, column 3.",
    "    for i in range(10):\n        print('naïve café', i)  # ------ ======\n",
    "<ref>a dog</ref><box>[[1, 2, 3, 4]]</box> system user assistant don't",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，哈哈哈哈。",
    "東京は日本の首都です。 Привет, как дела? Ёлка Ёлка",
] * 3


def train(**options) -> ModelProto:
    file = io.BytesIO()
    settings = dict(
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=False,
    )
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=file, **(settings | options))
    return ModelProto.FromString(file.getvalue())


def processor(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def entry(content: str, **flags) -> dict:
    return dict(content=content, special=True, lstrip=False, rstrip=False, single_word=False, normalized=False) | flags


def write(folder, model: ModelProto, added: dict[int, dict] | None = None, **config):
    """A released folder; without added tokens it has only the model."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    if added is not None:
        config["added_tokens_decoder"] = {str(number): token for number, token in added.items()}
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def slow(model: ModelProto, added: dict[int, dict], legacy: bool):
    """What `PreTrainedTokenizer.tokenize` and `LlamaTokenizer` of transformers 4.37 do, said again in a few lines."""
    if not legacy:
        model.normalizer_spec.add_dummy_prefix = False
    oracle = processor(model)
    tokens = {token["content"]: (number, token) for number, token in added.items()}
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")

    def encode(prompt: str) -> list[int]:
        parts = pattern.split(prompt)
        for i in range(1, len(parts), 2):
            if tokens[parts[i]][1]["rstrip"]:
                parts[i + 1] = parts[i + 1].lstrip()
            if tokens[parts[i]][1]["lstrip"]:
                parts[i - 1] = parts[i - 1].rstrip()
        if not legacy and parts[0]:
            parts[0] = "▁" + parts[0]
        ids = [[tokens[part][0]] if i % 2 else oracle.encode(part) for i, part in enumerate(parts) if part]
        return [number for part in ids for number in part]

    return encode
