"""Folders whose model was trained with another system message than InternVL2's."""

import dataclasses
import json

import pytest

from tests import tiny
from vlm_jax.config import build, to_plain
from vlm_jax.convert.folders import read_folder, write_folder
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.errors import UserError
from vlm_jax.inference.model import Model
from vlm_jax.system import System

PHI = "You are an AI assistant whose name is Phi-3."  # Mini-InternVL-Chat-4B-V1-5
HERMES = '"Answer the questions of "\n        "Hermes-2."'

# In the form of a release's file; running it would be noticed.
CONVERSATION = """
import nowhere

raise SystemExit("this code was run")

register_conv_template(
    Conversation(
        name='phi3-chat',
        system_template='<|system|>\\n{system_message}',
        # system_message='an older one',
        system_message='You are an AI assistant whose name is Phi-3.',
        roles=('<|user|>\\n', '<|assistant|>\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|end|>',
        stop_token_ids=[2, 32000, 32007]
    )
)
register_conv_template(
    Conversation(
        name='Hermes-2',
        system_template='<|im_start|>system\\n{system_message}',
        system_message=@HERMES@,
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>',
        stop_str='<|endoftext|>',
    )
)
""".replace("@HERMES@", HERMES)


@pytest.fixture
def release(tmp_path):
    """Mini-InternVL's original layout, with the prompt format of Hermes-2 and a `conversation.py`."""
    write_folder(tmp_path / "release", tiny.params(), tiny.system(), tiny.tokenizer(), layout="internvl")
    (tmp_path / "release" / "conversation.py").write_text(CONVERSATION, encoding="utf-8")
    return tmp_path / "release"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_release_speaks_as_it_was_trained(release, tmp_path):
    params, system, words = read_folder(release)
    assert system == dataclasses.replace(tiny.system(), system_prompt="Answer the questions of Hermes-2.")
    model = Model(system, params, words)
    start = "<|im_start|>system\nAnswer the questions of Hermes-2.<|im_end|><|im_start|>user\nWhich?"
    assert words.decode(model.batch(["Which?"]).tokens[0], skip_special=False).startswith(start)
    for layout in ("hf", "internvl"):
        write_folder(tmp_path / layout, params, system, words, layout=layout)
        assert read_folder(tmp_path / layout)[1] == system
        assert "'Answer the questions of Hermes-2.'" in (tmp_path / layout / "chat_template.jinja").read_text()
        config = json.loads((tmp_path / layout / "config.json").read_text())
        assert config["system_message"] == "Answer the questions of Hermes-2."
    assert build(System, to_plain(system)) == system


def test_every_format_of_the_file_is_found(release):
    edit(release / "config.json", template="phi3-chat")
    system = read_folder(release)[1]
    assert (system.template, system.system_prompt) == ("phi3", PHI)
    assert system.chat_template == dataclasses.replace(TEMPLATES["phi3"], system=PHI)


def test_the_formats_own_text_is_no_other(release):
    text = TEMPLATES["internvl2"].system
    (release / "conversation.py").write_text(CONVERSATION.replace(HERMES, repr(text)), encoding="utf-8")
    assert read_folder(release)[1] == tiny.system()
    (release / "conversation.py").unlink()
    assert read_folder(release)[1] == tiny.system()


def test_the_config_comes_before_the_release(release):
    edit(release / "config.json", system_message="Be brief.")
    assert read_folder(release)[1].system_prompt == "Be brief."
    edit(release / "config.json", system_message=None)
    assert read_folder(release)[1].system_prompt == "Answer the questions of Hermes-2."
    edit(release / "config.json", system_message=3)
    with pytest.raises(UserError, match="system_message must be text, is 3"):
        read_folder(release)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("'<|im_start|>user\\n'", "'<|im_start|>user'", r"another prompt format than ours .*: roles is .*, not \("),
        ("sep='<|im_end|>'", "sep='<|im_end|>\\n'", r"sep is '<\|im_end\|>\\n', not '<\|im_end\|>'"),
        ("sep_style=SeparatorStyle.MPT,\n        sep='<|im_end|>'", "sep='<|im_end|>'", "sep_style is 'ADD_COLON_SING"),
        ("<|im_start|>system\\n{system_message}", "{system_message}", r"system_template is '\{system_message\}'"),
        (HERMES, "open('secrets').read()", "system_message is not a literal, and code of a model folder is not run"),
        (HERMES, "7", "system_message is 7, not text"),
        ("name='Hermes-2'", "name='Hermes-3'", r"no prompt format 'Hermes-2', which .*config\.json asks for"),
        ("import nowhere", "import", r"conversation\.py: not Python"),
        ("import nowhere", "x = '\0'", r"conversation\.py: not Python"),
        ("import nowhere", "x = " + "(" * 300, r"conversation\.py: not Python"),
    ],
)
def test_other_formats_are_refused(release, before, after, expected):
    assert before in CONVERSATION
    (release / "conversation.py").write_text(CONVERSATION.replace(before, after), encoding="utf-8")
    with pytest.raises(UserError, match=expected) as error:
        read_folder(release)
    assert "\n" not in str(error.value).replace("\\n", "")
