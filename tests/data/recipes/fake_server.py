"""A server that speaks as OpenAI's does, knows an answer to everything, and may be in trouble now and then."""

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def said(body):
    """The text of a request's last message, and the pictures in it."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, []
    return content[-1]["text"], [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


def answer(body):
    """What the model says: a pure function of the request."""
    text, images = said(body)
    number = int(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:6], 16)
    if "score" in text:
        return json.dumps({"score": 90 if "true" in text else 10})
    if images:
        return f"A true caption number {number}."
    if "detail" in body["messages"][0]["content"] or "description" in body["messages"][0]["content"]:
        return f"There is something to be seen, namely {number}."
    return json.dumps(
        [{"question": f"What is {number}?", "answer": f"It is {number}."}, {"question": "Q", "answer": "A"}]
    )


class FakeServer:
    """Answers requests, and keeps what it was asked.

    Attributes:
      bodies: of all requests that it answered well.
      asked: number of all requests.
      keys: that came with them.
      most_at_once: requests under way at the same time, at most.
    """

    def __init__(self, *, trouble=None, reply=answer, slow=0.0):
        """`trouble(body, attempt)` may return a function of the handler that answers in its own way."""
        self.bodies, self.keys, self.asked, self.most_at_once, self._now = [], set(), 0, 0, 0
        self.trouble, self.reply, self.slow = trouble, reply, slow
        self._attempts, self._lock = {}, threading.Lock()

    @contextlib.contextmanager
    def running(self):
        """Gives the base URL while it runs."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer._post(self)

            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/v1"
            server.shutdown()

    def _post(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = json.dumps(body, sort_keys=True)
        with self._lock:
            attempt = self._attempts[key] = self._attempts.get(key, -1) + 1
            self.asked += 1
            self.keys.add(handler.headers.get("Authorization"))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self.slow)
        with self._lock:
            self._now -= 1
        handler.close_connection = True
        if handler.path != "/v1/chat/completions":
            return send(handler, 404, {"error": {"message": "no such page"}})
        if self.trouble and (act := self.trouble(body, attempt)):
            return act(handler)
        with self._lock:
            self.bodies.append(body)
        text = self.reply(body)
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return send(handler, 200, {"object": "chat.completion", "choices": [choice], "usage": usage})


def send(handler, status, content, **headers):
    """Sends JSON, or bytes as they are."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with contextlib.suppress(OSError):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def fails(status, message="trouble", **headers):
    """A trouble: a status and an error message."""
    return lambda handler: send(handler, status, {"error": {"message": message}}, **headers)


def garbage(handler):
    """A trouble: a page of something else."""
    send(handler, 200, b"<html>upstream timed out</html>")


def hang_up(handler):
    """A trouble: the connection ends."""
    handler.connection.close()
