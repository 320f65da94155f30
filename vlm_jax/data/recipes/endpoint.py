"""A large model behind `/chat/completions` of any server that speaks as OpenAI's does (vLLM, llama.cpp, Ollama, ...).

`urllib` is enough for it: one request, one answer. Redirections are not followed, because the key would go with them.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import UserError

_LARGEST = 1 << 24  # bytes of a reply
_REFUSED = (400, 413, 415, 422)
"""Answers to one request alone: it is too long, or breaks the server's rules."""

_BUSY = (408, 409, 425, 429)
"""Answers that another attempt may not get; so may all from 500 on."""


class BusyError(Exception):
    """Another attempt may succeed.

    Attributes:
      wait: seconds that the server asks for, or None.
    """

    def __init__(self, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.wait = wait


class RefusedError(Exception):
    """The server will never answer this request."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to ask, and as whom. The key is in no text that this class gives.

    Attributes:
      base_url: as http://localhost:8000/v1.
      model: its name there.
      key: of the account; '' sends none.
      timeout: seconds that a server may be silent.
    """

    base_url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(
                f"base URL: must be like http://localhost:8000/v1, got '{self._without_key(self.base_url)}'"
            )
        if parts.username or parts.password:
            raise UserError("base URL: must not hold a user or password; the key has a place of its own")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError("key: must be one line of printable ASCII characters")

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Asks once.

        Args:
          body: of the request, with `messages`.

        Returns:
          The reply as it came: an object whose `choices[0].message` is one.

        Raises:
          BusyError: no usable reply this time.
          RefusedError: never one to this request.
          UserError: never one to any request.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                content = answer.read(_LARGEST + 1)
        except urllib.error.HTTPError as error:
            raise self._error_of(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None) or error
            raise BusyError(self._without_key(f"{type(error).__name__}: {reason}")) from None
        return self._checked(content)

    def _checked(self, content: bytes) -> dict[str, Any]:
        try:
            if len(content) > _LARGEST:
                raise ValueError("too large")
            reply = json.loads(content)
            fine = isinstance(reply["choices"][0]["message"], dict)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            fine = False
        if not fine:
            start = content[:60].decode("utf-8", "replace")
            raise BusyError(self._without_key(f"the server's reply is no chat completion: {start!r}"))
        return reply

    def _error_of(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                said = error.read(1 << 16).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                said = ""
        detail = f"HTTP {error.code}: {self._without_key(' '.join(_message(said).split())[:300])}"
        if error.code in _BUSY or error.code >= 500:
            return BusyError(detail, wait_of(error.headers.get("Retry-After"), time.time()))
        if error.code in _REFUSED:
            return RefusedError(detail)
        return UserError(f"{self.url}: {detail}")

    def _without_key(self, text: str) -> str:
        """A server may quote the key when it refuses it."""
        return text.replace(self.key, "***") if self.key else text


def wait_of(header: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for, which holds seconds or a date; None where it says nothing.

    Args:
      header: its value.
      now: seconds since 1970.
    """
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(wait, 0.0) if wait < float("inf") else None


def _message(said: str) -> str:
    """The text in `{"error": {"message": ...}}`, or all of it."""
    try:
        error = json.loads(said)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return said
