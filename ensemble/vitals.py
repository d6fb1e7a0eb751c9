"""What an engine does: counted inside its process, read from outside as plain records."""

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import NamedTuple

from ensemble.gpu import Gpus

_EPOCH = time.time() - time.monotonic()


def now() -> float:
    """Epoch seconds that never go back while the process lives."""
    return _EPOCH + time.monotonic()


class Vitals(NamedTuple):
    """One life of an engine, that is one process of it, at one moment. Times are epoch seconds.

    pid tells the lives of (model, replica) apart. created, ready: the process began, and can answer. first, last: the
    first message came, and the last work was seen (now, while there is some). busy: seconds with a message at work.
    requests: prompts answered. running, waiting: of vLLM's scheduler; of another engine what is under way, and 0.
    kv_usage: 0 to 1. memory_gib: in use on the engine's GPUs of this node, by whomever. at: when this was written.
    """

    model: str
    replica: int
    pid: int
    node: str
    gpus: int
    status: str
    created: float
    ready: float | None
    first: float | None
    last: float | None
    busy: float
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    errors: int
    running: int
    waiting: int
    kv_usage: float
    memory_gib: float | None
    at: float


class Recorder:
    """Counts what one engine does. Everything but `stalled` belongs to the engine's event loop."""

    def __init__(self, model: str, replica: int, gpus: int, clock: Callable[[], float] = now) -> None:
        """gpus: that this engine holds, 0 on CPU."""
        self._model, self._replica, self._gpus, self._clock = model, replica, gpus, clock
        self.status = "loading"
        self._created = clock()
        self._ready: float | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._messages = self._under_way = 0  # at work: messages, and the requests in them
        self._busy, self._since = 0.0, 0.0  # until `_since`, from when on something is at work
        self._progress = self._created
        self._requests = self._prompt = self._cached = self._output = self._errors = 0
        self._scheduler: tuple[int, int, float] | None = None

    def started(self) -> None:
        self.status, self._ready = "ready", self._clock()

    def working(self, requests: int = 1) -> "_Working":
        """A context around the work on one message of so many requests."""
        return _Working(self, requests)

    def add(self, prompt_tokens: int, cached_tokens: int, output_tokens: int, requests: int = 1) -> None:
        """Counts what was answered. prompt_tokens include the cached ones."""
        self._requests += requests
        self._prompt += prompt_tokens
        self._cached += cached_tokens
        self._output += output_tokens
        self._progress = self._clock()

    def error(self) -> None:
        self._errors += 1

    def progress(self) -> None:
        """The engine showed a sign of life."""
        self._progress = self._clock()

    def scheduled(self, running: int, waiting: int, kv_usage: float) -> None:
        """The same, by a step of vLLM's scheduler that left this much to do."""
        self._scheduler = (running, waiting, kv_usage)
        self._progress = self._clock()

    def stalled(self) -> float:
        """Seconds since the last sign of life while work is under way, else 0. Any thread may ask."""
        return max(0.0, self._clock() - max(self._progress, self._since)) if self._messages else 0.0

    def snapshot(self) -> Vitals:
        at = self._clock()
        running, waiting, kv_usage = self._scheduler or (self._under_way, 0, 0.0)
        return Vitals(
            model=self._model,
            replica=self._replica,
            pid=os.getpid(),
            node=platform.node(),
            gpus=self._gpus,
            status=self.status,
            created=self._created,
            ready=self._ready,
            first=self._first,
            last=at if self._messages else self._last,
            busy=self._busy_until(at),
            requests=self._requests,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            output_tokens=self._output,
            errors=self._errors,
            running=running,
            waiting=waiting,
            kv_usage=kv_usage,
            memory_gib=self._memory(),
            at=at,
        )

    def _begin(self, requests: int) -> None:
        if not self._messages:
            self._since = self._clock()
            if self._first is None:
                self._first = self._since
        self._messages += 1
        self._under_way += requests

    def _end(self, requests: int) -> None:
        self._messages -= 1
        self._under_way -= requests
        self._last = self._clock()
        if not self._messages:
            self._busy += self._last - self._since

    def _busy_until(self, at: float) -> float:
        return self._busy + (max(0.0, at - self._since) if self._messages else 0.0)

    def _memory(self) -> float | None:
        # Before the engine is ready an import of vLLM would settle its settings, and a scripted engine has none.
        if not self._gpus or self._ready is None or "vllm" not in sys.modules:
            return None
        with suppress(Exception):  # no driver, no such GPU: the figure is missing, the engine works
            return self._held.used_gib()
        return None

    @cached_property
    def _held(self) -> Gpus:
        return Gpus(self._gpus)


class _Working:
    """A class, as `contextmanager` takes three times as long."""

    __slots__ = ("_recorder", "_requests")

    def __init__(self, recorder: Recorder, requests: int) -> None:
        self._recorder, self._requests = recorder, requests

    def __enter__(self) -> None:
        self._recorder._begin(self._requests)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recorder._end(self._requests)
