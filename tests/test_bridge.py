"""A request through an ASGI application in this process: whole, streamed, failing, and left by its client."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serve import bridge
from serve.bridge import Head, respond

app = FastAPI()
seen: list[str] = []


@app.post("/echo")
async def echo(request: Request) -> dict[str, str]:
    return {"body": (await request.body()).decode(), "type": request.headers["content-type"]}


@app.post("/count")
async def count() -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        try:
            for i in range(1_000_000):
                yield f"{i};"
                await asyncio.sleep(0)
        finally:
            seen.append("count ended")

    return StreamingResponse(numbers(), media_type="text/event-stream")


@app.post("/wait")
async def wait(request: Request) -> None:
    """Like vLLM's: it works in a task of its own, which only the client's going ends."""
    work = asyncio.ensure_future(asyncio.sleep(3600))
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()
    seen.append("wait ended")


@app.post("/deaf")
async def deaf() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        seen.append("deaf ended")


@app.post("/fail")
async def fail() -> None:
    raise RuntimeError("inside")


async def whole(path: str, body: bytes = b"{}") -> tuple[Head, bytes]:
    head, *pieces = [piece async for piece in respond(app, "POST", path, body)]
    assert isinstance(head, Head)
    return head, b"".join(pieces)


def test_a_whole_response():
    head, body = asyncio.run(whole("/echo", b'{"a": 1}'))
    assert head == Head(200, "application/json")
    assert body == b'{"body":"{\\"a\\": 1}","type":"application/json"}'
    assert asyncio.run(whole("/nothing"))[0].status == 404


def test_a_stream_comes_whole_in_its_order_in_few_pieces():
    async def main() -> list[bytes]:
        coming = respond(app, "POST", "/count", b"{}", lambda: 0.01)
        await anext(coming)
        pieces = [await anext(coming) for _ in range(5)]
        await coming.aclose()
        return pieces

    pieces = asyncio.run(main())
    assert pieces[0] == b"0;"
    numbers = [int(n) for n in b"".join(pieces).split(b";")[:-1]]
    assert numbers == list(range(len(numbers)))
    assert all(piece.count(b";") > 1 for piece in pieces[1:])


def test_what_the_application_raises_comes_out():
    with pytest.raises(RuntimeError, match="inside"):
        asyncio.run(whole("/fail"))


@pytest.mark.parametrize(("path", "first"), [("/count", True), ("/wait", False), ("/deaf", False)])
def test_who_leaves_ends_the_work(path, first, monkeypatch):
    monkeypatch.setattr(bridge, "LEAVE_SECONDS", 0.2)

    async def main() -> None:
        coming = respond(app, "POST", path, b"{}")
        if first:
            assert await anext(coming) == Head(200, "text/event-stream; charset=utf-8")
            assert await anext(coming) == b"0;"
            await coming.aclose()
        else:
            asking = asyncio.ensure_future(anext(coming))
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await coming.aclose()

    seen.clear()
    asyncio.run(main())
    assert seen == [f"{path[1:]} ended"]
