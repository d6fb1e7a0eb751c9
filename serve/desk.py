"""Who asks, which model is meant, and how long it may take: what every route needs beside the gateway."""

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from fastapi import Request
from prometheus_client import Metric

from serve.admission import Admission
from serve.gateway import Gateway
from serve.keys import Keys
from serve.metrics import Metrics
from serve.refusals import Refusal
from serve.settings import Limits

Result = TypeVar("Result")
AHEAD = 64  # results that may wait for a slow reader
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Desk:
    """One gateway process."""

    def __init__(
        self,
        gateway: Gateway,
        limits: Limits,
        keys: Keys | None,
        default: str | None,
        lacking: Callable[[], Awaitable[list[str]]],
        counted: Callable[[], Awaitable[list[list[Metric]]]],
    ) -> None:
        """default: the model of requests that name none. lacking: the models without an engine. counted: what each
        gateway process has counted."""
        self.gateway, self.limits, self._keys, self._default = gateway, limits, keys, default or gateway.name
        self.admission, self.lacking, self.counted = Admission(limits), lacking, counted
        self.metrics = Metrics(self.admission)

    def enter(self, request: Request) -> str:
        """The caller's name; its request is counted. Raises Refusal."""
        caller = self._caller(request)
        self.admission.knock(caller)
        return caller

    def _caller(self, request: Request) -> str:
        """The name of the key that came with the request. Raises Refusal.

        Without keys only this machine is answered, and no web page that a person here happens to look at: a browser
        says where a request comes from, and under which name it found this server.
        """
        if self._keys is not None:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
            if (name := self._keys.name_of(key)) is None:
                raise Refusal(401, "no such API key: send one as `Authorization: Bearer KEY`")
            return name
        host = request.client.host if request.client else ""
        if not _is_loopback(host) or "x-forwarded-for" in request.headers:
            raise Refusal(403, "without a keys file only this machine is answered: start the server with one")
        named = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        origin = request.headers.get("origin")
        if named not in LOCAL or (origin and origin.split("//")[-1] != request.headers.get("host")):
            raise Refusal(403, "a page of another site may not ask a server without keys")
        return host

    def named(self, model: object) -> str:
        """The model or ensemble that a request means. Raises Refusal."""
        name = model or self._default
        if not isinstance(name, str) or name not in self.gateway.names:
            shown = str(name)[:80]
            raise Refusal(404, f"no model {shown!r}; available: {', '.join(self.gateway.names)}")
        return name

    def member(self, model: object) -> str:
        """The same, where it must be one model: of the ensemble the one that writes its texts."""
        name = self.named(model)
        return self.gateway.writer() if name == self.gateway.name else name

    def whole(self, model: object) -> None:
        """Raises Refusal where a request that the whole ensemble answers names something else."""
        if model is not None and self.named(model) != self.gateway.name:
            raise Refusal(
                400, f"/v1/solve asks all of {self.gateway.name}: leave model out, or ask {model} at /v1/completions"
            )

    async def within(self, caller: str, size: int, work: Awaitable[Result]) -> Result:
        """The result of work on so many questions or prompts. Raises Refusal where there is no room or no time; who
        stops waiting cancels it."""
        try:
            with self.admission.enter(caller, size):
                async with asyncio.timeout(self.limits.seconds):
                    return await work
        except TimeoutError:
            raise self._too_long() from None
        finally:
            if isinstance(work, Coroutine):
                work.close()  # it has not begun where there was no room

    async def flow(self, caller: str, size: int, source: AsyncGenerator[Result]) -> AsyncGenerator[Result]:
        """The same for work that gives its results one after another, at the pace at which they are taken.

        It runs in a task of its own: a response is sent by another task than the one that it begins in, and a time
        limit holds for one.
        """
        ready: asyncio.Queue[Result | _End] = asyncio.Queue(AHEAD)

        async def work() -> None:
            async with aclosing(source):
                async for item in source:
                    await ready.put(item)

        async def run() -> None:
            try:
                await self.within(caller, size, work())
            except Exception as e:
                await ready.put(_End(e))
            else:
                await ready.put(_End(None))

        task = asyncio.create_task(run())
        try:
            while not isinstance(item := await ready.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _too_long(self) -> Refusal:
        return Refusal(504, f"no answer within {self.limits.seconds:g} s", 1.0)


class _End(NamedTuple):
    error: Exception | None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOCAL
