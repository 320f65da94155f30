"""A large model writes data: many pictures' flows at once, every reply kept, and the records made of what was kept.

First everything is asked that the ledger does not hold yet, by several threads in any order. Then the flows run once
more in the order of the input, from the ledger alone, and give the records. So a run that was interrupted, or had other
threads or other luck with a busy server, writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.recipes.contexts import Context, read_context
from vlm_jax.data.recipes.endpoint import BusyError, RefusedError
from vlm_jax.data.recipes.flows import Flow, Request, flow_of, reply_of
from vlm_jax.data.recipes.ledger import Entry, Ledger
from vlm_jax.data.recipes.pace import Pace, StoppedError, Streak
from vlm_jax.data.recipes.styles import Ask, CaptionFilter, messages
from vlm_jax.errors import UserError

Chat = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Asks a server once (`Endpoint.chat`)."""

_IN_VAIN = 10  # requests in a row that are given up before the run is


class UnansweredError(Exception):
    """A request of a flow that the ledger has no reply to."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be written about what.

    Attributes:
      lines: the contexts, one JSON object each.
      name: of their file, for messages.
      style: of the records.
      model: the name that goes into requests.
      image: gives a picture's data URL, by the name of its file and the place of its record.
      body: more fields of every request; None removes one.
      seed: of which question is asked.
    """

    lines: Sequence[bytes]
    name: str
    style: Ask | CaptionFilter
    model: str
    image: Callable[[str, str], str]
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def context(self, number: int) -> tuple[Context, str]:
        """A context and its place.

        Raises:
          RecordError: it cannot be read.
        """
        place = f"{self.name}:{number + 1}"
        return read_context(self.lines[number], place), place

    def request(self, request: Request, context: Context, url: str) -> dict[str, Any]:
        """The body of a request; `url` is the picture's."""
        prompt = request.prompt
        body = {
            "model": self.model,
            "messages": messages(prompt, context, {"type": "image_url", "image_url": {"url": url}}, **request.more),
            "temperature": prompt.temperature,
            "max_tokens": prompt.max_tokens,
            **self.body,
        }
        return {field: value for field, value in body.items() if value is not None}


def ask_all(job: Job, chat: Chat, ledger: Ledger, pace: Pace, threads: int, done: Callable[[str], None]) -> list[str]:
    """Asks everything that the ledger does not hold.

    Args:
      job: what to ask.
      chat: asks once.
      ledger: takes the replies.
      pace: says when to ask.
      threads: requests under way at once, at most.
      done: is told of every context that is finished ('') or whose reply cannot be used (the problem), in the
        thread that called `ask_all`.

    Returns:
      Why requests were given up, a text for each context that has one; asking again may help.

    Raises:
      UserError: nothing can be asked; two contexts have one id; a reply was kept to another question. What was
        answered until then is kept.
    """
    _check_ids(job)
    crew = _Crew(job, chat, ledger, pace)
    workers = [threading.Thread(target=crew.work, daemon=True) for _ in range(min(threads, max(len(job.lines), 1)))]
    for worker in workers:
        worker.start()
    try:
        for outcome in crew.outcomes(len(job.lines)):
            done(outcome)
    finally:
        pace.stop.set()
    for worker in workers:
        worker.join()
    return crew.given_up


def records(job: Job, ledger: Ledger, bad: Callable[[RecordError], None]) -> Iterator[dict[str, Any]]:
    """The records that the kept replies make, in the order of the contexts.

    Args:
      job: what was asked.
      ledger: the replies.
      bad: is told of contexts and replies that cannot be used.
    """
    for number in range(len(job.lines)):
        try:
            context, place = job.context(number)

            def kept(request: Request, context: Context = context, place: str = place) -> Entry:
                entry = ledger.get(key_of(context, request))
                if entry is None:
                    if request.prompt.image:  # nothing was asked if it could not be read
                        job.image(context.image, place)
                    raise UnansweredError
                return entry

            yield from _run(flow_of(job.style, context, place, job.seed), kept, place)
        except RecordError as error:
            bad(error)
        except UnansweredError:
            continue


def tokens(ledger: Ledger) -> Counter[str]:
    """What servers counted for all kept replies: `prompt_tokens` and `completion_tokens`."""
    found: Counter[str] = Counter()
    for entry in ledger.entries():
        usage = (entry.reply or {}).get("usage") or {}
        for field in ("prompt_tokens", "completion_tokens"):
            count = usage.get(field) if isinstance(usage, dict) else None
            found[field] += count if isinstance(count, int) else 0
    return found


def key_of(context: Context, request: Request) -> str:
    """Names a request in the ledger."""
    return f"{context.id} {request.step}"


def _check_ids(job: Job) -> None:
    seen: dict[str, int] = {}
    for number in range(len(job.lines)):
        try:
            id_ = job.context(number)[0].id
        except RecordError:
            continue  # it is told when its turn comes
        if id_ in seen:
            raise UserError(f"{job.name}:{number + 1}: id '{id_}' stands in line {seen[id_]} too; ids must be unique")
        seen[id_] = number + 1


def _run(flow: Flow, answer: Callable[[Request], Entry], place: str) -> list[dict[str, Any]]:
    """Lets a flow run to its end."""
    try:
        request = next(flow)
        while True:
            entry = answer(request)
            if entry.reply is None:
                raise RecordError(place, "reply", f"{request.step}: refused: {entry.refused}")
            request = flow.send(reply_of(entry.reply))
    except StopIteration as finished:
        return finished.value


class _Crew:
    """Threads that take one context after another."""

    def __init__(self, job: Job, chat: Chat, ledger: Ledger, pace: Pace) -> None:
        self._job, self._chat, self._ledger, self._pace = job, chat, ledger, pace
        self._numbers = iter(range(len(job.lines)))
        self._changed = threading.Condition()
        self._outcomes: list[str] = []
        self._failure: BaseException | None = None
        self._streak = Streak(_IN_VAIN)
        self.given_up: list[str] = []

    def outcomes(self, total: int) -> Iterator[str]:
        """What became of each context, as it comes.

        Raises:
          whatever ended a thread.
        """
        for _ in range(total):
            with self._changed:
                while not self._outcomes and self._failure is None:
                    self._changed.wait(1.0)  # so that Ctrl-C is heard
                if self._failure is not None:
                    raise self._failure
                outcome = self._outcomes.pop(0)
            yield outcome

    def work(self) -> None:
        """Works until nothing is left."""
        try:
            while not self._pace.stop.is_set():
                with self._changed:
                    number = next(self._numbers, None)
                if number is None:
                    return
                outcome = self._one(number)
                with self._changed:
                    self._outcomes.append(outcome)
                    self._changed.notify()
        except StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify()

    def _one(self, number: int) -> str:
        """Asks all about one context; returns what is wrong with it, or ''."""
        place = f"{self._job.name}:{number + 1}"
        try:
            context, place = self._job.context(number)
            flow = flow_of(self._job.style, context, place, self._job.seed)
            _run(flow, lambda request: self._answer(request, context, place), place)
        except RecordError as error:
            return str(error)
        except BusyError as error:
            self._streak.count(error)
            with self._changed:
                self.given_up.append(f"{place}: {error}")
        return ""

    def _answer(self, request: Request, context: Context, place: str) -> Entry:
        job, key = self._job, key_of(context, request)
        # Kept by the picture's name: the bytes of millions of pictures are not read to find that nothing is to be done.
        digest = hashlib.sha256(json.dumps(job.request(request, context, context.image), sort_keys=True).encode())
        asked = digest.hexdigest()[:32]
        entry = self._ledger.get(key)
        if entry is not None:
            if entry.request != asked:
                raise UserError(
                    f"{self._ledger.path}: {key} was asked something else before: the prompt, the model, the context "
                    "or a setting has changed; choose another --out, or remove that file"
                )
            return entry
        url = job.image(context.image, place) if request.prompt.image else ""
        body = job.request(request, context, url)
        try:
            entry = Entry(key, asked, self._pace.request(lambda: self._chat(body)))
        except RefusedError as error:
            entry = Entry(key, asked, None, str(error))
        self._streak.count(None)
        self._ledger.add(entry)
        return entry
