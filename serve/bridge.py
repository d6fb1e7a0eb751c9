"""Runs one request through an ASGI application in this process, and gives its response back piece by piece.

vLLM's own HTTP application speaks OpenAI's protocol; it runs beside its engine, and the gateway is another process. So
the request comes as plain bytes, and the response goes as plain records.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

LEAVE_SECONDS = 5.0  # for the application to end a request whose client has gone
PIECES = 64  # of a response that may wait for a slow reader


class Head(NamedTuple):
    """Where a response begins."""

    status: int
    content_type: str


async def respond(
    app: Any, method: str, path: str, body: bytes, pause: Callable[[], float] = lambda: 0.0
) -> AsyncGenerator[Head | bytes]:
    """First the Head, then the body's pieces. Closing the iterator is the client's going: the request is cancelled.

    pause: seconds after a piece, in which what comes is gathered for the next one. Raises what the application raises
    before its response has begun.
    """
    pieces: asyncio.Queue[Head | bytes | None] = asyncio.Queue(PIECES)
    gone = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if gone.is_set():
            return
        if message["type"] == "http.response.start":
            types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            await pieces.put(Head(message["status"], types[0].decode() if types else "application/json"))
        elif message["type"] == "http.response.body" and message.get("body"):
            await pieces.put(message["body"])

    async def run() -> None:
        try:
            await app(_scope(app, method, path, len(body)), receive, send)
        finally:
            await pieces.put(None)

    task = asyncio.create_task(run())
    try:
        ended = False
        while not ended:
            waiting: list[Any] = [await pieces.get()]
            while not pieces.empty():
                waiting.append(pieces.get_nowait())
            if ended := waiting[-1] is None:
                waiting.pop()
            if waiting and isinstance(waiting[0], Head):
                yield waiting.pop(0)
            if waiting:
                yield b"".join(waiting)
                await asyncio.wait([task], timeout=pause())
        await task
    finally:
        gone.set()
        while not pieces.empty():  # a sender that waits for room goes on
            pieces.get_nowait()
        # vLLM's application ends its work when it hears that the client has gone, and loses sight of it when cancelled.
        if not task.done() and not (await asyncio.wait([task], timeout=LEAVE_SECONDS))[0]:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _scope(app: Any, method: str, path: str, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(length).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "app": app,
        "state": {},
    }
