"""Prompt formats as data: what stands around the texts of a conversation, and around its images.

Sources: `internvl/conversation.py` and `train/dataset.py` of OpenGVLab/InternVL; `llava/conversation.py` and
`llava/train/train.py` of haotian-liu/LLaVA; `VL/llava/` of 01-ai/Yi; `tinyllava/data/template/` of
TinyLLaVA/TinyLLaVA_Factory; `pipeline/mimicit_utils/mimicit_dataset.py` and `src/otter_ai/models/fuyu/` of
Luodian/Otter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlm_jax.data.conversation import Role
from vlm_jax.errors import UserError

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
MARKUP = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Tokens that may be written in text: grounding mark-up, in InternVL's order."""

Images = Literal["marks", "turn", "prompt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    r"""A prompt format: what stands around the texts of a conversation, and around its images.

    A turn is its role's prefix, its text, and what closes it. An answer is `answer_lead`, its text, `answer_tail` and
    `stop`, all of which the model learns, then `after_stop`. The open header of an answer is its prefix alone.

    Attributes:
      name: key in `TEMPLATES`.
      system: system text where the conversation brings none; with None nothing of a system turn stands there then.
      prefixes: what opens a turn, by role; a format without a place for a system text has none for it.
      stop: what ends an answer; generation stops at it.
      after_stop: what follows the stop; never supervised.
      closings: what closes a system or user turn, where that is not `stop` and `after_stop`.
      answer_lead, answer_tail: what stands before and behind the text of an answer.
      bos: a token before the prompt that is no part of its text: what follows is tokenised as a text's beginning.
      begin: what opens the text of the prompt.
      strip: white space around every message is removed.
      system_within: a system text stands inside the first user's turn, behind its prefix.
      captions: the format is a caption behind its images: of the one question only the images stand there.
      images: where images stand. `marks`: at their marks. `turn`: an image alone in its turn is moved to the front of
        it, with a newline behind it, and the rest is stripped (LLaVA's `preprocess_multimodal`). `prompt`: before the
        whole prompt; what is left of their turns is stripped.
      numbered: where a question has several images and no marks for them, they stand before it as `Image-1: ` and so on
        (InternVL's convention), not one below another.
      image_start, image_end: tokens around the tokens of an image; empty where there are none.
      image_context: the token in whose places visual tokens go.
      row_token: the token at the end of every row of an image's patches, where the format has one.
      control: tokens of the format besides those of images, which a tokenizer must have.
      markup: tokens for grounding that its tokenizers have besides.
    """

    name: str
    system: str | None
    prefixes: Mapping[Role, str]
    stop: str
    after_stop: str = ""
    closings: Mapping[Role, str] = dataclasses.field(default_factory=dict)
    answer_lead: str = ""
    answer_tail: str = ""
    bos: str = ""
    begin: str = ""
    strip: bool = False
    system_within: bool = False
    captions: bool = False
    images: Images = "marks"
    numbered: bool = True
    image_start: str = IMAGE_START
    image_end: str = IMAGE_END
    image_context: str = IMAGE_CONTEXT
    row_token: str | None = None
    control: tuple[str, ...] = ()
    markup: tuple[str, ...] = MARKUP

    def __post_init__(self) -> None:
        if self.system is not None and "system" not in self.prefixes:
            raise UserError(f"the prompt format '{self.name}' has no place for a system text")

    @property
    def image_tokens(self) -> tuple[str, ...]:
        """The tokens that stand for an image, or around it."""
        named = (self.image_start, self.image_end, self.image_context, self.row_token)
        return tuple(token for token in named if token)

    def closing(self, role: Role) -> str:
        """What stands behind the text of a system or user turn."""
        return self.closings.get(role, self.stop + self.after_stop)


_CHATML: dict[Role, str] = {
    "system": "<|im_start|>system\n",
    "user": "<|im_start|>user\n",
    "assistant": "<|im_start|>assistant\n",
}
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

_INTERNVL = (
    # InternVL2 with a Qwen2 decoder (upstream name Hermes-2): nothing after <|im_end|>.
    Template(
        name="internvl2",
        system=_INTERNVL2_SYSTEM,
        prefixes=_CHATML,
        stop="<|im_end|>",
        control=_CHATML_TOKENS,
    ),
    Template(
        name="internlm2-chat",
        system=_INTERNVL2_SYSTEM,
        prefixes=_CHATML,
        stop="<|im_end|>",
        begin="<s>",
        strip=True,
        control=_CHATML_TOKENS,
    ),
    Template(
        name="phi3",
        system=_INTERNVL2_SYSTEM,
        # What Phi-3's slow tokenizer, with which it was trained, puts before every prompt: <s> and a lone "▁". (The
        # lengths that `preprocess_phi3` reckons with fit a conversation of several turns in no other way.)
        begin="<s> ",
        prefixes={"system": "<|system|>\n", "user": "<|user|>\n", "assistant": "<|assistant|>\n"},
        stop="<|end|>",
        control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Template(
        name="internvl2_5",
        system=_INTERNVL2_5_SYSTEM,
        prefixes=_CHATML,
        stop="<|im_end|>",
        after_stop="\n",
        control=_CHATML_TOKENS,
    ),
)

# LLaVA replaces one text by the image's features and adds no token to the vocabulary; a token of that name serves here.
_LLAVA_IMAGE: dict[str, Any] = dict(
    image_start="", image_end="", image_context="<image>", markup=(), images="turn", numbered=False
)

_VICUNA = Template(
    name="vicuna_v1",
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    prefixes={"system": "", "user": "USER: ", "assistant": "ASSISTANT:"},
    closings={"system": " ", "user": " "},
    answer_lead=" ",
    stop="</s>",
    bos="<s>",
    control=("<s>", "</s>"),
    **_LLAVA_IMAGE,
)

# `preprocess_plain` supervises the whole caption and the newline behind it.
_PLAIN = Template(
    name="plain",
    system=None,
    prefixes={"user": "", "assistant": ""},
    closings={"user": ""},
    stop="\n",
    bos="<s>",
    captions=True,
    control=("<s>",),
    **_LLAVA_IMAGE,
)

_LLAVA = (
    # LLaVA-1, 1.5 and NeXT with Vicuna, and TinyLLaVA's `llama`; nothing stands between </s> and the next USER.
    _VICUNA,
    # The same with the end token of Phi-2 and StableLM-2, whose tokenizers put nothing before a prompt, and of Gemma.
    dataclasses.replace(_VICUNA, name="phi", stop="<|endoftext|>", bos="", control=("<|endoftext|>",)),
    dataclasses.replace(_VICUNA, name="gemma", stop="<eos>", bos="<bos>", control=("<bos>", "<eos>")),
    # The first stage of all of these (TinyLLaVA's `pretrain`), by what their tokenizers put before a prompt.
    _PLAIN,
    dataclasses.replace(_PLAIN, name="plain_bare", bos="", control=()),  # Phi-2, StableLM-2, Nous-Hermes-2-Yi-34B
    dataclasses.replace(_PLAIN, name="plain_gemma", bos="<bos>", control=("<bos>",)),
    # LLaVA-NeXT with Mistral (`mistral_instruct`). The model learns the space behind an answer as well.
    Template(
        name="mistral_instruct",
        system=None,
        prefixes={"system": "<<SYS>>\n", "user": "[INST] ", "assistant": ""},
        closings={"system": "\n<</SYS>>\n\n", "user": " [/INST]"},
        system_within=True,
        answer_lead=" ",
        answer_tail=" ",
        stop="</s>",
        bos="<s>",
        control=("<s>", "</s>"),
        **_LLAVA_IMAGE,
    ),
    # LLaVA-NeXT with Nous-Hermes-2-Yi-34B.
    Template(
        name="chatml_direct",
        system="Answer the questions.",
        prefixes=_CHATML,
        stop="<|im_end|>",
        control=_CHATML_TOKENS,
        **_LLAVA_IMAGE,
    ),
    # Yi-VL (`mm_default`). Its trainer also supervises `### Assistant:` and the first two tokens of `### Human:`, which
    # every prompt brings; here it is the answer with its stop.
    Template(
        name="yi_vl",
        system="This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. "
        "Read all the images carefully, and respond to the human's questions with informative, helpful, detailed and "
        "polite answers. 这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
        "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。",
        prefixes={"system": "", "user": "Human: ", "assistant": "Assistant:"},
        closings={"system": "\n\n### ", "user": "\n### "},
        answer_lead=" ",
        answer_tail="\n",
        stop="###",
        after_stop=" ",
        control=("###",),
        **{**_LLAVA_IMAGE, "image_context": "<image_placeholder>"},
    ),
    # Fuyu as OtterHD tunes it: <s> stands behind the image, and \x04 begins an answer.
    Template(
        name="fuyu",
        system=None,
        prefixes={"user": "User:", "assistant": "Assistant:\x04"},
        closings={"user": " "},
        answer_lead=" ",
        stop="|ENDOFTEXT|",
        bos="<s>",
        control=("<s>", "|ENDOFTEXT|"),
        **{**_LLAVA_IMAGE, "image_context": "|SPEAKER|", "row_token": "|NEWLINE|", "images": "prompt"},
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in (*_INTERNVL, *_LLAVA)}
"""Prompt formats by name. Mini-InternVL 1B, 2B and 4B use `internvl2`, `internlm2-chat` and `phi3`."""
