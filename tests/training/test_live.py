"""What a person sees while a run trains, on terminals (real ones, by `pty`) and in logs."""

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from vlm_jax.training import live
from vlm_jax.training.live import Lines, Panel, Status, draw, line, screen, summary

ENTRY = {
    "loss": 0.51234, "accuracy": 0.8421, "learning_rate": 5e-3, "answers_per_second": 436.2, "useful_tokens": 0.962,
}  # fmt: skip


def status(**changes):
    fields = dict(name="tune", number=3, stages=6, step=340, steps=600, entry=ENTRY, left=(80.2, 558.0))
    return Status(**{**fields, **changes})


def text(status, width, waited=12.0):
    console = Console(file=io.StringIO(), width=width)
    console.print(draw(status, waited, width))
    return console.file.getvalue()


def test_lines_stand_below_each_other():
    widths = (7, 4)
    first = line(status(name="read", step=1, left=None, entry={**ENTRY, "loss": 11.3, "answers_per_second": 1.23},
                        widths=widths))  # fmt: skip
    later = line(status(name="teacher", step=1340, steps=1600, widths=widths))
    assert later == (
        "teacher 3/6  1340/1600  loss  0.5123  accuracy  0.842  rate 5.00e-03   436 answers/s  useful tokens  96%  "
        "left 1 min 20 s, of all 9 min 18 s"
    )
    assert "left ?, of all ?" in first
    assert [first.index(word) for word in ("loss", "rate", "answers/s", "left")] == [
        later.index(word) for word in ("loss", "rate", "answers/s", "left")
    ]
    entry = {key: value for key, value in ENTRY.items() if key != "accuracy"}  # distillation has no answers
    assert line(status(entry=entry)).index("rate") == line(status()).index("rate")
    assert "accuracy      –" in line(status(entry=entry))
    assert live.summary(status(entry=entry)).endswith("loss 0.5123")
    assert line(status(number=6, step=600, seconds=41.0, left=(0.0, 0.0))).endswith("took 41 s")


def test_lines_come_every_so_often_and_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    lines = Lines(10.0)
    with lines.shown():
        for step in range(0, 601, 5):
            now[0] += 1.0
            lines.show(status(step=step), fresh=step % 10 == 0)
    steps = [int(said.split()[2].split("/")[0]) for said in capsys.readouterr().out.splitlines()]
    assert steps == [*range(0, 600, 50), 600]


@pytest.mark.parametrize("width", [120, 80, 60, 30])
def test_the_panel_fits_its_terminal_and_loses_nothing(width):
    shown = text(status(), width)
    lines = shown.splitlines()
    assert len({len(row) for row in lines}) == 1
    assert len(lines[0]) == min(width, live.WIDEST)
    words = " ".join(shown.replace("│", " ").split())
    for part in ("stage 3 of 6", "0.5123", "0.842", "5.00e-03", "436", "96%", "340 of 600", "1 min 20 s", "9 min 18 s"):
        assert part in words, part
    if width == 80:
        assert len(lines) == 5


def test_the_panel_says_what_is_going_on_and_claims_nothing():
    assert "compiling the first step ... 12 s" in text(status(step=0, entry=None, left=None), 80)
    assert "not known yet" in text(status(step=1, left=None), 80)
    assert "asking 48 validation questions ... 12 s" in text(status(doing="asking 48 validation questions"), 80)
    assert "in all" not in text(status(number=6), 80)


def console():
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=20)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_panel_goes_however_its_stage_ends_and_one_line_stays(capsys, error):
    on = console()
    panel = Panel(on)
    step = 340 if error else 600
    try:
        with panel.shown():
            panel.show(status(step=0, entry=None), fresh=False)
            panel.show(status(step=step, seconds=41.0), fresh=True)
            print("a line")  # noqa: T201
            panel.show(status(step=step, seconds=41.0, doing="asking"), fresh=False)
            panel.show(status(step=step, seconds=41.0), fresh=False)
            if error:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    drawn = on.file.getvalue()
    assert drawn.index("\x1b[?25l") < drawn.rindex("\x1b[?25h")  # the cursor is hidden, and comes back
    assert drawn.count("╭") >= 1
    assert drawn.index("a line") < drawn.rindex("╭")  # above the panel, which was drawn again below
    erased = drawn.rindex("╰")
    assert "\x1b[2K" in drawn[erased:]
    said = drawn + capsys.readouterr().out
    done = "340 of 600" if error else "600"
    assert said.count(f"stage tune: {done} steps took 41 s, loss 0.5123, accuracy 0.842") == 1


def test_summary_is_short():
    assert len(summary(status(name="teacher", step=1234, steps=12_345, seconds=2345))) < 80


def screens(monkeypatch, tty, **environment):
    stream = io.StringIO()
    stream.isatty = lambda: tty
    monkeypatch.setattr(sys, "stdout", stream)
    for name in ("JPY_PARENT_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return type(screen(1.0))


def test_a_panel_only_where_one_can_be_drawn(monkeypatch):
    assert screens(monkeypatch, True, TERM="xterm-256color") is Panel
    assert screens(monkeypatch, False, TERM="xterm-256color") is Lines
    assert screens(monkeypatch, False, TERM="xterm-256color", FORCE_COLOR="1") is Lines
    assert screens(monkeypatch, True, TERM="dumb") is Lines
    assert screens(monkeypatch, True, TERM="xterm-color", JPY_PARENT_PID="1") is Lines  # `!command` in a notebook
    assert screens(monkeypatch, True, TERM="xterm-color", COLAB_RELEASE_TAG="r") is Lines


PROGRAM = """
import sys, warnings
from vlm_jax.training.live import Status, screen
from vlm_jax.training.log import say
entry = dict(loss=1.5, accuracy=0.25, learning_rate=1e-3, answers_per_second=3.0, useful_tokens=0.5)
say("before")
shown = screen(0.0)
with shown.shown():
    for step in range(1, 4):
        shown.show(Status("tune", 1, 1, step, 3, entry), fresh=True)
        say(f"said {step}")
        warnings.warn(f"warned {step}")
say("after")
"""


def on_a_terminal(**environment):
    own, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=its, stdout=its, stderr=its, cwd=os.getcwd(),
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20", **environment},
    )  # fmt: skip
    os.close(its)
    found = b""
    while True:
        try:
            part = os.read(own, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        found += part
    os.close(own)
    assert process.wait(timeout=60) == 0
    return found.decode()


def test_on_a_real_terminal():
    said = on_a_terminal()
    for expected in ("before", "said 1", "said 2", "said 3", "warned 3", "after"):
        assert expected in said
    assert "╭" in said
    assert "\x1b[?25h" in said[said.rindex("╰") :]
    assert "╭" not in said[said.index("after") :]
    assert "\x1b[36m" in said
    assert "\x1b[36m" not in on_a_terminal(NO_COLOR="1")
    plain = on_a_terminal(TERM="dumb")
    assert "\x1b" not in plain
    assert [row for row in plain.splitlines() if row.startswith("tune 1/1  3/3  loss  1.5000")]
