"""The recipe `write`, from its command to a server and back."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from PIL import Image

from tests.data.recipes.conftest import load
from tests.data.recipes.fake_server import FakeServer, answer, fails, garbage, hang_up, said
from vlm_jax.data import check
from vlm_jax.data.formats.open import open_data

KEY = "sk-secret-0123456789"


@pytest.fixture
def contexts(tmp_path):
    """A file of contexts, with pictures."""
    (tmp_path / "pictures").mkdir()
    lines = []
    for number in range(24):
        Image.new("RGB", (30, 20 + number), (10 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
        box = {"label": "thing", "box": [0.1, 0.2, 0.3, 0.4]}
        caption = f"A true thing number {number}." if number % 2 else f"Buy number {number} now!"
        lines.append({"id": f"c{number}", "image": f"{number}.png", "captions": [caption], "boxes": [box]})
    path = tmp_path / "contexts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def flags(url, *more, style="conversation", out="out.json"):
    return (
        "write", "--style", style, "--contexts=contexts.jsonl", "--root=pictures", "--base-url", url, "--model=big",
        "--first-wait=0.01", "--concurrency=6", "--out", out, *more,
    )  # fmt: skip


def written(tmp_path, out="out"):
    """All that a run left, byte by byte."""
    return {path.name.replace(out, "out", 1): path.read_bytes() for path in tmp_path.glob(f"{out}*")}


def stumbling(body, attempt):
    """Trouble of every kind at the first attempts of most requests."""
    draw = random.Random(said(body)[0] + str(attempt)).random()
    troubles = [fails(429, Retry_After="0.02"), fails(500), garbage, hang_up, fails(503, Retry_After="0")]
    return troubles[int(draw * 99) % 5] if attempt < 3 and draw < 0.6 else None


def test_conversations(recipe, tmp_path, contexts, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = FakeServer()
    with server.running() as url:
        code, printed = recipe(*flags(url, "--price-in=2", "--price-out=1000"))
    assert code == 0
    assert "24 records of 24 contexts; 24 replies, 24 of them new" in printed
    assert "tokens: 2,400 asked, 240 answered, 0.24 at the given prices" in printed
    assert server.keys == {f"Bearer {KEY}"}
    assert all(body["model"] == "big" and body["temperature"] == 0.7 for body in server.bodies)
    assert "A true thing number 3.\n\nObjects:\nthing: [0.100, 0.200, 0.300, 0.400]" in "".join(
        said(body)[0] for body in server.bodies
    )

    source = open_data(tmp_path / "out.json")
    assert [record["id"] for record in load(tmp_path / "out-conversation.jsonl")] == [f"c{n}-0" for n in range(24)]
    assert source[3].images == ((tmp_path / "pictures" / "3.png").read_bytes(),)
    assert [turn.role for turn in source[3].turns] == ["user", "assistant"] * 2
    assert check.main(["--data", "out.json", "--tile-size=56", "--workers=0"]) == 0

    replies = {entry["key"]: entry["reply"] for entry in load(tmp_path / "out.json.replies.jsonl")}
    assert set(replies) == {f"c{n} ask" for n in range(24)}
    pairs = json.loads(replies["c3 ask"]["choices"][0]["message"]["content"])
    assert [turn.text for turn in source[3].turns if turn.role == "assistant"] == [pair["answer"] for pair in pairs]
    for name, content in written(tmp_path).items():
        assert KEY.encode() not in content, name


def test_trouble_changes_nothing_but_time(recipe, tmp_path, contexts):
    with FakeServer().running() as url:
        assert recipe(*flags(url, out="quiet.json"))[0] == 0
    server = FakeServer(trouble=stumbling, slow=0.005)
    with server.running() as url:
        code, printed = recipe(*flags(url, out="loud.json"))
    assert code == 0
    assert len(server.bodies) == 24
    assert server.asked > 30
    assert 1 < server.most_at_once <= 6
    assert f"put off {server.asked - 24} times" in printed
    assert written(tmp_path, "quiet") == {
        name: content.replace(b"loud", b"quiet") for name, content in written(tmp_path, "loud").items()
    }


def test_nothing_is_asked_twice(recipe, tmp_path, contexts):
    server = FakeServer()
    with server.running() as url:
        assert recipe(*flags(url))[0] == 0
        first = written(tmp_path)
        code, printed = recipe(*flags(url))
        assert code == 0
        assert "24 replies, 0 of them new" in printed
        assert len(server.bodies) == 24
        assert written(tmp_path) == first

        code, _ = recipe(*flags(url, "--model=other"))
        assert "was asked something else before" in code
        code, _ = recipe(*flags(url, "--body", '{"top_p": 0.5}'))
        assert "was asked something else before" in code
        assert (len(server.bodies), written(tmp_path)) == (24, first)

        lines = contexts.read_text().splitlines(keepends=True)
        contexts.write_text("".join([*lines, lines[0].replace("c0", "new")]))
        assert recipe(*flags(url))[0] == 0
        assert len(server.bodies) == 25


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_cut_off_goes_on(recipe, tmp_path, contexts, how):
    with FakeServer().running() as url:
        assert recipe(*flags(url, out="whole.json"))[0] == 0
    server = FakeServer(slow=0.25)
    with server.running() as url:
        command = [sys.executable, "-m", "vlm_jax.data.recipes", *map(str, flags(url, "--concurrency=2"))]
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - not so where tests run in the background
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
        ledger = tmp_path / "out.json.replies.jsonl"
        deadline = time.monotonic() + 60
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 5):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(how)
        code = process.wait(20)
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
        kept = {json.loads(line)["key"] for line in ledger.read_bytes().split(b"\n")[:-1]}
        assert 5 <= len(kept) < 24
        assert not (tmp_path / "out.json").exists()
        assert recipe(*flags(url))[0] == 0
    asked = Counter(re.search(r"number (\d+)", said(body)[0])[1] for body in server.bodies)
    assert {asked[key.removeprefix("c").removesuffix(" ask")] for key in kept} == {1}
    assert len(asked) == 24
    assert sum(asked.values()) <= 24 + 2  # of each thread, what was under way was lost
    assert written(tmp_path) == {n: c.replace(b"whole", b"out") for n, c in written(tmp_path, "whole").items()}


def test_replies_that_cannot_be_used_are_listed(recipe, tmp_path, contexts):
    def reply(body):
        text = said(body)[0]
        return "I'd rather not." if "number 4 " in text or "number 9." in text else answer(body)

    server = FakeServer(reply=reply, trouble=lambda body, _: "number 7." in said(body)[0] and fails(400, "too long"))
    with server.running() as url:
        code, printed = recipe(*flags(url))
        assert code == 0
        assert "21 records of 24 contexts" in printed
        assert "3 of 24 records are bad (12.5 %: reply 3)" in printed
        rows = load(tmp_path / "quarantine.jsonl")
        assert [row["line"] for row in rows] == [5, 8, 10]
        assert rows[0]["detail"] == 'ask: must be JSON, got "I\'d rather not."'
        assert rows[1]["detail"] == "ask: refused: HTTP 400: too long"
        kept = {entry["key"]: entry for entry in load(tmp_path / "out.json.replies.jsonl")}
        assert kept["c4 ask"]["reply"]["choices"][0]["message"]["content"] == "I'd rather not."
        assert kept["c7 ask"]["refused"] == "HTTP 400: too long"

        asked = server.asked
        assert recipe(*flags(url))[0] == 0  # a finished one is not asked again, useful or not
        assert server.asked == asked
        server.reply, server.trouble = answer, None
        code, printed = recipe(*flags(url, "--ask-bad-again"))
        assert code == 0
        assert server.asked == asked + 3
        assert "24 records of 24 contexts" in printed
        assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_run_of_bad_replies_is_ended(recipe, tmp_path, contexts):
    server = FakeServer(reply=lambda body: "no", slow=0.02)
    with server.running() as url:
        code, _ = recipe(*flags(url, "--concurrency=1"))
    assert "only 20 % may (--max-bad)" in code
    assert "must be JSON, got 'no'" in code
    assert server.asked < 12
    assert not (tmp_path / "out.json").exists()
    assert len(load(tmp_path / "out.json.replies.jsonl")) >= 5


def test_what_got_no_reply_is_told_and_asked_for_later(recipe, tmp_path, contexts):
    server = FakeServer(trouble=lambda body, _: "number 3." in said(body)[0] and fails(500, "overloaded"))
    with server.running() as url:
        code, printed = recipe(*flags(url, "--attempts=2"))
        assert "1 of 24 contexts got no reply" in code
        assert "HTTP 500: overloaded" in code
        assert "23 records of 24 contexts" in printed
        server.trouble = None
        assert recipe(*flags(url))[0] == 0
    assert len(server.bodies) == 24
    assert [record["id"] for record in load(tmp_path / "out-conversation.jsonl")] == [f"c{n}-0" for n in range(24)]


@pytest.mark.parametrize(
    ("trouble", "part"),
    [
        (fails(401, f"bad key {KEY}"), "HTTP 401: bad key ***"),
        (fails(404), "HTTP 404"),
        (fails(500), "10 requests in a row"),
    ],
)
def test_a_server_that_answers_nobody(recipe, tmp_path, contexts, trouble, part):
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = FakeServer(trouble=lambda body, attempt: trouble)
    with server.running() as url:
        code, printed = recipe(*flags(url, "--key-file=key", "--attempts=2"))
    assert part in code
    assert KEY not in code + printed
    assert server.asked <= 40


def test_captions_and_filter(recipe, tmp_path, contexts):
    """Captions that advertise are judged badly by the fake, whose own are true."""
    server = FakeServer()
    with server.running() as url:
        assert recipe(*flags(url, style="caption_filter", out="web.jsonl"))[0] == 0
    records = load(tmp_path / "web.jsonl")
    assert len(records) == 24
    assert {record["score"] for record in records} == {90.0}
    captions = [record["conversations"][1]["value"] for record in records]
    assert captions[3] == "A true thing number 3."
    assert captions[4].startswith("A true caption")
    assert records[3]["image"] == "pictures/3.png"
    pictures = {url for body in server.bodies for url in said(body)[1]}
    assert len(pictures) == 24
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert "data:image" not in (tmp_path / "web.jsonl.replies.jsonl").read_text()


def test_a_picture_that_is_missing_or_large(recipe, tmp_path, contexts):
    (tmp_path / "pictures" / "5.png").unlink()
    Image.new("RGB", (900, 300)).save(tmp_path / "pictures" / "6.png")
    (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    server = FakeServer()
    with server.running() as url:
        code, printed = recipe(*flags(url, "--image-side=90", style="caption_filter"))
    assert code == 0
    assert "22 records" in printed
    assert {row["line"]: row["reason"] for row in load(tmp_path / "quarantine.jsonl")} == {6: "missing", 8: "image"}
    (large,) = {url for body in server.bodies for url in said(body)[1] if "jpeg" in url}
    assert len(large) < 3000


def test_the_limit_of_requests(recipe, tmp_path, contexts):
    contexts.write_text("".join(contexts.read_text().splitlines(keepends=True)[:4]))
    times = []

    def reply(body):
        times.append(time.monotonic())
        return answer(body)

    with FakeServer(reply=reply).running() as url:
        assert recipe(*flags(url, "--per-minute=300"))[0] == 0
    assert times[-1] - times[0] > 3 * 0.2 - 0.15


def test_two_runs_do_not_share_an_output(recipe, tmp_path, contexts):
    server = FakeServer(slow=0.3)
    with server.running() as url:
        command = [sys.executable, "-m", "vlm_jax.data.recipes", *map(str, flags(url, "--concurrency=1"))]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while not (tmp_path / "out.json.replies.jsonl").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        code, _ = recipe(*flags(url))
        process.kill()
        process.wait()
    assert "another process is writing it" in code


def test_mistakes(recipe, tmp_path, contexts, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    lines = contexts.read_text()
    for arguments, part in (
        (flags("ftp://x"), "base URL"),
        (flags("http://x", style="convrsation"), "did you mean 'conversation'"),
        (flags("http://x", "--body=[1]"), "--body"),
        (flags("http://x", "--key-file=none"), "--key-file: none: cannot be read"),
        ([flag for flag in flags("") if flag not in ("--base-url", "")], "OPENAI_BASE_URL"),
    ):
        assert part in recipe(*arguments)[0]
    contexts.write_text(lines + lines.splitlines()[2] + "\n")
    with FakeServer().running() as url:
        assert "id 'c2' stands in line 3 too" in recipe(*flags(url))[0]
    (tmp_path / "mine.json").write_text("{}")
    assert "already exists" in recipe(*flags("http://x", out="mine.json"))[0]
    assert (tmp_path / "mine.json").read_text() == "{}"
