import subprocess
import sys

import pytest

from tests import tiny
from vlm_jax import chat
from vlm_jax.convert.folders import write_folder
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    write_folder(folder, tiny.params(), tiny.system(), tiny.tokenizer())
    (folder / "seen.png").write_bytes(tiny.png(20, 20, 4))
    return folder


def test_one_answer(folder, capsys):
    image = str(folder / "seen.png")
    assert chat.main([f"--model={folder}", f"--image={image}", "--prompt=Total?", "--max_new_tokens=6"]) == 0
    assert capsys.readouterr().out == tiny.model().generate("Total?", [image], max_new_tokens=6) + "\n"


def test_a_conversation(folder, capsys, monkeypatch):
    lines = iter(
        ["", "/help", f"/image {folder / 'none.png'}", f"/image {folder / 'seen.png'}", "Total?", "/reset", "Total?"]
    )

    def read(*_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert chat.main([f"--model={folder}", "--max_new_tokens=6"]) == 0
    printed = capsys.readouterr().out
    with_image = tiny.model().generate("Total?", [folder / "seen.png"], max_new_tokens=6)
    without = tiny.model().generate("Total?", max_new_tokens=6)
    assert with_image != without
    expected = ["/quit", "/quit", "none.png: cannot read this image", "(1 image(s)", with_image, "(forgotten)", without]
    positions = [0]
    for text in expected:
        assert text in printed[positions[-1] :], text
        positions.append(printed.index(text, positions[-1]) + len(text))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model"),
        (["--model=x", "--temperature=-1", "--prompt=a"], "--temperature must be a number from 0"),
        (["--model=x", "--max_new_tokens=0", "--prompt=a"], "--max_new_tokens must be at least 1"),
        (["--model=x", "--image=missing.png", "--prompt=a"], "missing.png: cannot read this image"),
        (["--model=missing", "--prompt=a"], "missing: there is no such folder"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        chat.main(flags)


def test_the_command_ends_with_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "vlm_jax.chat", "--model=missing", "--prompt=a"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: missing: there is no such folder\n"
