import email.utils
import socket
import time

import pytest

from tests.data.recipes.fake_server import FakeServer, fails, garbage, hang_up, send
from vlm_jax.data.recipes.endpoint import BusyError, Endpoint, RefusedError, wait_of
from vlm_jax.errors import UserError

KEY = "sk-secret-0123456789"
BODY = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def ask(trouble=None, **options):
    server = FakeServer(trouble=trouble and (lambda body, attempt: trouble), slow=options.pop("slow", 0))
    with server.running() as url:
        return server, Endpoint(url, "m", KEY, **options).chat(BODY)


def test_a_reply_and_what_was_sent():
    server, reply = ask()
    assert reply["usage"]["prompt_tokens"] == 100
    assert server.bodies == [BODY]
    assert server.keys == {f"Bearer {KEY}"}
    with server.running() as url:
        Endpoint(f"{url}/", "m").chat(BODY)
    assert server.keys == {f"Bearer {KEY}", None}


@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [
        (fails(429, "slow down"), BusyError, "HTTP 429: slow down"),
        (fails(500), BusyError, "HTTP 500: trouble"),
        (fails(503), BusyError, "HTTP 503"),
        (garbage, BusyError, "no chat completion: '<html>"),
        (lambda handler: send(handler, 200, {"choices": []}), BusyError, "no chat completion"),
        (lambda handler: send(handler, 200, {"choices": [{"message": None}]}), BusyError, "no chat completion"),
        (hang_up, BusyError, ""),
        (fails(400, "too long"), RefusedError, "HTTP 400: too long"),
        (fails(401, f"wrong key {KEY}"), UserError, "chat/completions: HTTP 401: wrong key "),
        (fails(404), UserError, "HTTP 404"),
        (fails(302, "go there", Location="http://127.0.0.1:9/steal"), UserError, "HTTP 302"),
    ],
)
def test_trouble(trouble, kind, said):
    with pytest.raises(kind) as raised:
        ask(trouble)
    assert said in str(raised.value)
    assert KEY not in str(raised.value)


def test_silence_and_absence():
    with pytest.raises(BusyError, match="timed out"):
        ask(slow=0.6, timeout=0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BusyError, match="refused"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "m").chat(BODY)


def test_how_long_to_wait():
    assert wait_of(None, 0) is None
    assert wait_of("7", 0) == 7
    assert wait_of("1.5", 0) == 1.5
    now = time.time()
    assert wait_of(email.utils.formatdate(now + 30, usegmt=True), now) == pytest.approx(30, abs=1.1)
    assert wait_of(email.utils.formatdate(now - 30, usegmt=True), now) == 0
    assert wait_of("soon", 0) is None
    assert wait_of("inf", 0) is None
    with pytest.raises(BusyError) as raised:
        ask(fails(429, Retry_After="3"))
    assert raised.value.wait == 3


def test_the_key_is_in_no_text():
    assert KEY not in repr(Endpoint("http://localhost/v1", "m", KEY))
    for url, key, said in (
        (f"ftp://{KEY}/v1", KEY, "base URL"),
        (f"http://me:{KEY}@host/v1", KEY, "base URL"),
        ("localhost:8000", KEY, "base URL"),
        ("http://localhost/v1", f"{KEY}\nx", "key: must be one line"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            Endpoint(url, "m", key)
        assert KEY not in str(raised.value)
