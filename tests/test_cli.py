import io
import sys

import pytest

from tests.imports import imported_by
from vlm_jax import cli
from vlm_jax.errors import UserError


def exit_code(main, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main)
    return exit_info.value.code


def test_a_user_error_is_one_line_and_code_2(monkeypatch, capsys):
    def main(arguments):
        raise UserError(f"data.json: line 3:\nno image in {arguments}")

    assert exit_code(main, monkeypatch, "--x=1") == 2
    assert capsys.readouterr().err == "error: data.json: line 3: no image in ['--x=1']\n"


def test_exit_codes_of_success_of_a_command_and_of_ctrl_c(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    assert exit_code(lambda arguments: None, monkeypatch) == 0
    assert exit_code(lambda arguments: 7, monkeypatch) == 7
    assert exit_code(interrupted, monkeypatch) == 130


def test_a_defect_keeps_its_traceback(monkeypatch):
    def main(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def test_flags_must_be_known_and_whole():
    parser = cli.ArgumentParser(prog="evaluate")
    parser.add_argument("--benchmark")
    with pytest.raises(UserError, match="--bench=x"):
        parser.parse_args(["--bench=x"])


def test_plain_lines_at_start_between_and_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with cli.progress("Reading", 100) as advance:
        for _ in range(25):
            now[0] += 1.0
            advance(4)
    assert sys.stderr.getvalue().splitlines() == [
        "Reading: 0/100",
        "Reading: 40/100 after 10 s, about 15 s left",
        "Reading: 80/100 after 20 s, about 5 s left",
        "Reading: 100/100 done in 25.0 s",
    ]


def test_progress_never_claims_that_broken_work_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def read():
        with cli.progress("Reading") as advance:
            advance()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        read()
    assert sys.stderr.getvalue().splitlines()[0] == "Reading: 0"
    assert "done" not in sys.stderr.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    with cli.progress("Reading", 3) as advance:
        advance()
        advance(2)
    assert "3/3" in stream.getvalue()


def test_importing_cli_imports_nothing_heavy():
    assert imported_by("import vlm_jax.cli", "rich", "numpy", "jax", "pydantic") == set()


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (["python", "-m", "vlm_jax.main", "--workdir=x"], True),
        (["python", "-X", "dev", "-m", "vlm_jax.main", "--workdir=x"], True),
        (["python", "-m", "pdb", "-m", "vlm_jax.main", "--workdir=x"], True),
        (["python", "-", "--workdir=x"], False),
        (["python", "-c", "code", "--workdir=x"], False),
        (["python", "-m", "other", "--workdir=x"], False),
    ],
)
def test_only_the_command_itself_is_started_again(monkeypatch, command, again):
    started = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(cli.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(cli.os, "execve", lambda path, argv, environment: started.append((argv, environment)))
    monkeypatch.setattr(cli.sys, "orig_argv", command)
    monkeypatch.setattr(cli.sys, "argv", ["main.py", "--workdir=x"])
    cli.ask_for_huge_pages("vlm_jax.main")
    assert bool(started) == again
    if again:
        argv, environment = started[0]
        assert argv[1:] == command[1:]
        assert "hugetlb" in environment["GLIBC_TUNABLES"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cli.ask_for_huge_pages("vlm_jax.main")
        monkeypatch.delenv("GLIBC_TUNABLES")
        cli.ask_for_huge_pages("vlm_jax.main")
        assert len(started) == 1


def test_an_older_or_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(cli.os, "execve", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(cli.sys, "orig_argv", ["python", "-m", "vlm_jax.main"])
    monkeypatch.setattr(cli.sys, "argv", ["main.py"])
    for version in (("glibc", "2.31"), ("", "")):
        monkeypatch.setattr(cli.platform, "libc_ver", lambda version=version: version)
        cli.ask_for_huge_pages("vlm_jax.main")


@pytest.mark.parametrize(
    ("seconds", "words", "roughly"),
    [
        (0.04, "0.0 s", "0 s"),
        (59.4, "59 s", "59 s"),
        (59.7, "1 min 0 s", "1 min 0 s"),
        (80, "1 min 20 s", "1 min 20 s"),
        (675, "11 min 15 s", "11 min"),
        (3599, "59 min 59 s", "59 min"),
        (3600, "1 h 0 min", "1 h 0 min"),
        (9000, "2 h 30 min", "2 h 30 min"),
    ],
)
def test_durations(seconds, words, roughly):
    assert cli.duration(seconds) == words
    assert cli.duration(seconds, rough=True) == roughly
